"""How the time of a step is split."""

import time

import pytest
import torch
from torch import nn

from vgg_ddp.timing import StepClock

CPU = torch.device("cpu")


class Watch:
    """A watch that goes only when it is told to."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def go(self, seconds: float) -> None:
        self.seconds += seconds


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    """What the clock of the steps looks at."""
    watch = Watch()
    monkeypatch.setattr(time, "perf_counter", lambda: watch.seconds)
    return watch


class Slow(torch.autograd.Function):
    """Does nothing, and takes 8 s for it in the backward pass."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, values: torch.Tensor, watch: Watch) -> torch.Tensor:
        ctx.watch = watch
        return values.clone()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        ctx.watch.go(8)
        return gradient, None


def test_phases_add_up_and_the_last_gradient_ends_the_computing(watch: Watch) -> None:
    layer = nn.Linear(3, 2)
    clock = StepClock(CPU, layer)
    clock.start()
    watch.go(4)
    clock.mark("data")
    Slow.apply(layer(torch.ones(4, 3)), watch).sum().backward()
    watch.go(2)
    clock.mark("communication")
    watch.go(1)
    clock.mark("compute")
    assert clock.stop() == {"data": 4, "compute": 9, "communication": 2, "checkpoint": 0}


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
