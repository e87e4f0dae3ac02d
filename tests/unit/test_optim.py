"""The learning rate against a hand-drawn line, the optimizer against torch's plain SGD."""

import numpy as np
import pytest
import torch
from torch import nn

from vgg_ddp.model import VGG11
from vgg_ddp.optim import build_optimizer, lr_at


def test_schedule_is_the_line_drawn_by_hand() -> None:
    # 100 steps: 20 of warm-up, then a fall that would reach 0 one step after the last.
    expected = np.interp(np.arange(100), [-1, 19, 20, 100], [0.0, 0.4, 0.4, 0.0])
    np.testing.assert_allclose([lr_at(step, 100, 0.4) for step in range(100)], expected, atol=1e-12)


def test_peak_is_reached_after_a_fifth_of_the_run() -> None:
    rates = [lr_at(step, 1000, 0.1) for step in range(1000)]
    assert rates.index(max(rates)) == 199
    assert max(rates) == pytest.approx(0.1)
    assert rates[0] == pytest.approx(0.1 / 200)
    assert rates[-1] == pytest.approx(0.1 / 800)


@pytest.mark.parametrize("total_steps", range(1, 30))
def test_every_step_learns_and_none_exceeds_the_peak(total_steps: int) -> None:
    rates = [lr_at(step, total_steps, 0.1) for step in range(total_steps)]
    assert min(rates) > 0
    assert max(rates) == pytest.approx(0.1)


def test_single_step_takes_the_peak() -> None:
    assert lr_at(0, 1, 0.1) == pytest.approx(0.1)


def test_only_filters_and_matrices_decay() -> None:
    model = VGG11(10)
    optimizer = build_optimizer(model, lr=0.1, momentum=0.9, weight_decay=5e-4)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            assert decay.pop(id(module.weight)) == 5e-4
            assert decay.pop(id(module.bias)) == 0.0
        elif isinstance(module, nn.BatchNorm2d):
            assert decay.pop(id(module.weight)) == 0.0
            assert decay.pop(id(module.bias)) == 0.0
    assert decay == {}


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_steps_equal_those_of_plain_sgd(momentum: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    weights = [parameter.detach().clone() for parameter in model.parameters()]
    velocity = [torch.zeros_like(weight) for weight in weights]
    optimizer = build_optimizer(model, lr=0.1, momentum=momentum, weight_decay=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(6, 5)).square().sum().backward()
        # Nesterov momentum as torch's documentation of SGD defines it.
        for i, parameter in enumerate(model.parameters()):
            assert parameter.grad is not None
            gradient = parameter.grad + (0.01 * weights[i] if weights[i].ndim > 1 else 0.0)
            velocity[i] = momentum * velocity[i] + gradient
            weights[i] = weights[i] - 0.1 * (gradient + momentum * velocity[i])
        optimizer.step()
    for parameter, expected in zip(model.parameters(), weights, strict=True):
        torch.testing.assert_close(parameter.detach(), expected)
