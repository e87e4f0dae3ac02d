"""The learning rate against a hand-drawn line, the optimizer against torch's plain SGD."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from vgg_ddp.fast_vgg import FastVGG11
from vgg_ddp.model import VGG11
from vgg_ddp.optim import Optimizers, build_optimizers, schedule
from vgg_ddp.recipe import CLASSIC, FAST


def test_schedule_is_the_line_drawn_by_hand() -> None:
    # 100 steps: 20 of warm-up, then a fall that would reach 0 one step after the last.
    expected = np.interp(np.arange(100), [-1, 19, 20, 100], [0.0, 1.0, 1.0, 0.0])
    np.testing.assert_allclose([schedule(step, 100, 0.2) for step in range(100)], expected, atol=1e-12)


def test_schedule_without_warm_up_falls_from_the_first_step() -> None:
    np.testing.assert_allclose([schedule(step, 5, 0.0) for step in range(5)], [1.0, 1.0, 0.75, 0.5, 0.25])


def test_peak_is_reached_after_a_fifth_of_the_run() -> None:
    rates = [schedule(step, 1000, 0.2) for step in range(1000)]
    assert rates.index(max(rates)) == 199
    assert max(rates) == pytest.approx(1.0)
    assert rates[0] == pytest.approx(1 / 200)
    assert rates[-1] == pytest.approx(1 / 800)


@pytest.mark.parametrize("warmup", [0.0, 0.2])
@pytest.mark.parametrize("total_steps", range(1, 30))
def test_every_step_learns_and_none_exceeds_the_peak(total_steps: int, warmup: float) -> None:
    rates = [schedule(step, total_steps, warmup) for step in range(total_steps)]
    assert min(rates) > 0
    assert max(rates) == pytest.approx(1.0)


def test_single_step_takes_the_peak() -> None:
    assert schedule(0, 1, 0.2) == pytest.approx(1.0)


def settings(name: str, optimizers: Optimizers) -> dict[int, float]:
    """What each parameter's group says of a setting, by the parameter's id."""
    groups = [group for optimizer in optimizers.optimizers for group in optimizer.param_groups]
    return {id(parameter): group[name] for group in groups for parameter in group["params"]}


def test_only_filters_and_matrices_decay() -> None:
    model = VGG11(10)
    decay = settings("weight_decay", build_optimizers(model, CLASSIC, batch_size=128))
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            assert decay.pop(id(module.weight)) == 5e-4
            assert decay.pop(id(module.bias)) == 0.0
        elif isinstance(module, nn.BatchNorm2d):
            assert decay.pop(id(module.weight)) == 0.0
            assert decay.pop(id(module.bias)) == 0.0
    assert decay == {}


def test_fast_model_has_an_optimizer_for_all_that_learns_and_for_nothing_else() -> None:
    model = FastVGG11(10)
    lrs = settings("lr", build_optimizers(model, FAST, batch_size=100))
    assert lrs.keys() == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    stage = model.stages()[0]
    assert lrs[id(stage.convolution.weight)] == FAST.lr
    assert lrs[id(stage.norm.bias)] == pytest.approx(5.3)
    assert lrs[id(model.classifier.weight)] == pytest.approx(67)


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_steps_equal_those_of_plain_sgd(momentum: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    weights = [parameter.detach().clone() for parameter in model.parameters()]
    velocity = [torch.zeros_like(weight) for weight in weights]
    recipe = replace(CLASSIC, lr=0.2, momentum=momentum, weight_decay=0.01)
    optimizers = build_optimizers(model, recipe, batch_size=6)
    for _ in range(3):
        model(torch.randn(6, 5)).square().sum().backward()
        # Nesterov momentum as torch's documentation of SGD defines it.
        for i, parameter in enumerate(model.parameters()):
            assert parameter.grad is not None
            gradient = parameter.grad + (0.01 * weights[i] if weights[i].ndim > 1 else 0.0)
            velocity[i] = momentum * velocity[i] + gradient
            weights[i] = weights[i] - 0.1 * (gradient + momentum * velocity[i])
        optimizers.step(part_of_peak=0.5)
        assert all(parameter.grad is None for parameter in model.parameters())
    for parameter, expected in zip(model.parameters(), weights, strict=True):
        torch.testing.assert_close(parameter.detach(), expected)
