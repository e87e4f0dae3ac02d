"""The learning rate schedule, and the optimizers compared with torch's plain SGD."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from vgg_ddp.compat.torch_dynamo import SGD
from vgg_ddp.model.fast_vgg import FastVGG11
from vgg_ddp.model.vgg import VGG11
from vgg_ddp.recipes import CLASSIC, FAST
from vgg_ddp.worker.muon import Muon
from vgg_ddp.worker.optimizers import Optimizers, Schedule, build_optimizers, lr_factor, muon_filters


def factor_at(step: int, total_steps: int, warmup_fraction: float) -> float:
    return lr_factor(replace(CLASSIC, warmup_fraction=warmup_fraction), step, total_steps)


def test_lr_factor_follows_the_expected_line() -> None:
    # 100 steps: 20 of warm-up, then a decay that would reach 0 one step after the last.
    expected = np.interp(np.arange(100), [-1, 19, 20, 100], [0.0, 1.0, 1.0, 0.0])
    np.testing.assert_allclose([factor_at(step, 100, 0.2) for step in range(100)], expected, atol=1e-12)


def test_lr_factor_without_warm_up_decays_from_the_first_step() -> None:
    np.testing.assert_allclose([factor_at(step, 5, 0.0) for step in range(5)], [1.0, 1.0, 0.75, 0.5, 0.25])


def test_peak_is_reached_after_a_fifth_of_the_run() -> None:
    rates = [factor_at(step, 1000, 0.2) for step in range(1000)]
    assert rates.index(max(rates)) == 199
    assert max(rates) == pytest.approx(1.0)
    assert rates[0] == pytest.approx(1 / 200)
    assert rates[-1] == pytest.approx(1 / 800)


@pytest.mark.parametrize("warmup", [0.0, 0.2])
@pytest.mark.parametrize("total_steps", range(1, 30))
def test_lr_is_positive_and_reaches_the_peak_but_never_exceeds_it(total_steps: int, warmup: float) -> None:
    rates = [factor_at(step, total_steps, warmup) for step in range(total_steps)]
    assert min(rates) > 0
    assert max(rates) == pytest.approx(1.0)


def test_single_step_uses_the_peak() -> None:
    assert factor_at(0, 1, 0.2) == pytest.approx(1.0)


def settings(name: str, optimizers: Optimizers) -> dict[int, float]:
    """A setting of each parameter's group, by the parameter's id."""
    groups = [group for optimizer in optimizers.optimizers for group in optimizer.param_groups]
    return {id(parameter): group[name] for group in groups for parameter in group["params"]}


def test_weight_decay_applies_only_to_filters_and_matrices() -> None:
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


def test_optimizers_of_the_fast_model_cover_all_trainable_parameters() -> None:
    model = FastVGG11(10)
    lrs = settings("lr", build_optimizers(model, FAST, batch_size=100))
    assert lrs.keys() == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    stage = model.stages()[0]
    assert lrs[id(stage.convolution.weight)] == FAST.lr
    assert lrs[id(stage.norm.bias)] == pytest.approx(5.3)
    assert lrs[id(model.classifier.weight)] == pytest.approx(67)
    # In the ablation without Muon, the other parameters are trained as before.
    assert settings("lr", build_optimizers(model, replace(FAST, muon=False), batch_size=100)) == lrs
    assert [type(one) for one in build_optimizers(model, FAST, batch_size=100).optimizers] == [Muon, SGD]
    assert [type(one) for one in build_optimizers(model, replace(FAST, muon=False), 100).optimizers] == [SGD, SGD]


def test_muon_trains_the_filters_of_a_resnet_and_sgd_the_rest() -> None:
    model = resnet18(num_classes=10)
    muon, sgd = build_optimizers(model, FAST, batch_size=100).optimizers
    filters = {id(layer.weight) for layer in model.modules() if isinstance(layer, nn.Conv2d)}
    assert len(filters) == 20
    assert {id(parameter) for group in muon.param_groups for parameter in group["params"]} == filters
    rest = {id(parameter) for parameter in model.parameters()} - filters
    assert {id(parameter) for group in sgd.param_groups for parameter in group["params"]} == rest
    assert {(group["lr"], group["momentum"]) for group in sgd.param_groups} == {(0.01, 0.9)}


def test_muon_skips_convolutions_with_bias_or_groups() -> None:
    layers = [nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, groups=4, bias=False), nn.Conv2d(4, 8, 1, bias=False)]
    assert [id(weight) for weight in muon_filters(nn.Sequential(*layers))] == [id(layers[2].weight)]


def test_lr_can_stay_at_its_peak() -> None:
    recipe = replace(CLASSIC, lr_decay=False, warmup_fraction=0.5)
    assert [lr_factor(recipe, step, 4) for step in range(4)] == [0.5, 1.0, 1.0, 1.0]


def test_learning_rates_on_a_device_are_those_on_the_cpu() -> None:
    recipe = replace(CLASSIC, warmup_fraction=0.5)
    of_cpu = Schedule(recipe, [0.5, 2.0], 4, torch.device("cpu"))
    # Tensors of this device have no values: only shapes can be checked.
    on_device = Schedule(recipe, [0.5, 2.0], 4, torch.device("meta"))
    assert [of_cpu.lrs(step) for step in range(4)] == [[0.25, 1.0], [0.5, 2.0], [0.5, 2.0], [0.25, 1.0]]
    for step in (2, torch.zeros((), dtype=torch.int64, device="meta")):
        assert [(lr.shape, lr.dtype) for lr in on_device.lrs(step)] == [((), torch.float32)] * 2  # type: ignore[union-attr]


def test_checkpoint_holds_peak_learning_rates_not_tensors() -> None:
    optimizers = build_optimizers(FastVGG11(10), FAST, batch_size=100)
    peaks = optimizers.peak_lrs
    for group in (group for optimizer in optimizers.optimizers for group in optimizer.param_groups):
        group["lr"] = torch.tensor(0.125)
    saved = [group["lr"] for state in optimizers.state() for group in state["param_groups"]]
    assert saved == peaks


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
        # Nesterov momentum as defined in torch's documentation of SGD.
        for i, parameter in enumerate(model.parameters()):
            assert parameter.grad is not None
            gradient = parameter.grad + (0.01 * weights[i] if weights[i].ndim > 1 else 0.0)
            velocity[i] = momentum * velocity[i] + gradient
            weights[i] = weights[i] - 0.1 * (gradient + momentum * velocity[i])
        optimizers.step([0.1, 0.1])
        assert all(parameter.grad is None for parameter in model.parameters())
    for parameter, expected in zip(model.parameters(), weights, strict=True):
        torch.testing.assert_close(parameter.detach(), expected)
