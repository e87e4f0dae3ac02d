"""How the time of a step is split."""

import time

import pytest
import torch
from torch import nn

from vgg_ddp.timing import StepClock

CPU = torch.device("cpu")


class Slow(torch.autograd.Function):
    """Does nothing, and takes a while for it in the backward pass."""

    @staticmethod
    def forward(ctx: object, values: torch.Tensor) -> torch.Tensor:  # noqa: ARG004
        return values.clone()

    @staticmethod
    def backward(ctx: object, gradient: torch.Tensor) -> torch.Tensor:  # noqa: ARG004
        time.sleep(0.1)
        return gradient


def test_phases_add_up_and_the_last_gradient_ends_the_computing() -> None:
    layer = nn.Linear(3, 2)
    clock = StepClock(CPU, layer)
    clock.start()
    time.sleep(0.05)
    clock.mark("data")
    Slow.apply(layer(torch.ones(4, 3))).sum().backward()
    time.sleep(0.2)
    clock.mark("communication")
    time.sleep(0.03)
    clock.mark("compute")
    seconds = clock.stop()
    assert seconds["data"] == pytest.approx(0.05, abs=0.03)
    assert seconds["compute"] == pytest.approx(0.13, abs=0.05)
    assert seconds["communication"] == pytest.approx(0.2, abs=0.05)
    assert seconds["checkpoint"] == 0


def test_step_that_is_not_measured_gives_nothing() -> None:
    layer = nn.Linear(3, 2)
    clock = StepClock(CPU, layer)
    clock.mark("data")
    layer(torch.ones(4, 3)).sum().backward()
    assert clock.stop() == {}
    clock.start()
    assert clock.stop() == {"data": 0, "compute": 0, "communication": 0, "checkpoint": 0}
    assert clock.stop() == {}


def test_frozen_first_layer_is_passed_over() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    model[0].requires_grad_(False)
    clock = StepClock(CPU, model)
    clock.start()
    model(torch.ones(4, 3)).sum().backward()
    clock.mark("communication")
    assert clock.stop()["compute"] > 0
