"""The arrangement that learns fast against the plain VGG11 that it is stored as."""

import pytest
import torch
from torch import nn

from vgg_ddp.fast_vgg import FastVGG11, build_fast_model
from vgg_ddp.model import VGG11


@pytest.fixture
def model() -> FastVGG11:
    return build_fast_model(7, seed=3)


@pytest.mark.parametrize("size", [32, 64])
def test_plain_form_computes_the_same(model: FastVGG11, size: int) -> None:
    generator = torch.Generator().manual_seed(1)
    for stage in model.stages():
        for tensor in (stage.norm.bias, stage.norm.running_mean):
            assert tensor is not None
            tensor.data.normal_(std=0.1, generator=generator)
        assert stage.norm.running_var is not None
        stage.norm.running_var.uniform_(0.5, 2.0, generator=generator)
    model.double().eval()
    plain = model.to_vgg11().double().eval()
    inputs = torch.randn(4, 3, size, size, dtype=torch.float64, generator=generator)
    with torch.no_grad():
        torch.testing.assert_close(plain(inputs), model(inputs), rtol=1e-5, atol=1e-7)


def test_plain_form_has_the_names_and_shapes_of_vgg11(model: FastVGG11) -> None:
    shapes = {name: tensor.shape for name, tensor in model.to_vgg11().state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in VGG11(7).state_dict().items()}


def test_filters_the_biases_of_norms_and_the_classifier_learn(model: FastVGG11) -> None:
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    expected = {f"features.{index}.convolution.weight" for index in range(8)}
    expected |= {f"features.{index}.norm.bias" for index in range(8)} | {"classifier.weight"}
    assert learning == expected


def test_other_layers_begin_by_passing_their_input_on(model: FastVGG11) -> None:
    inputs = torch.randn(2, 256, 4, 4)
    convolution = model.stages()[4].convolution
    assert (convolution.in_channels, convolution.out_channels) == (256, 512)
    with torch.no_grad():
        torch.testing.assert_close(convolution(inputs)[:, :256], inputs)


def test_model_depends_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = build_fast_model(4, 7).state_dict()
    torch.manual_seed(2)
    expected = torch.rand(3)
    torch.manual_seed(2)
    second = build_fast_model(4, 7).state_dict()
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = build_fast_model(4, 8).state_dict()
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])


def test_filters_lie_in_channels_last_memory(model: FastVGG11) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.is_contiguous(memory_format=torch.channels_last)
