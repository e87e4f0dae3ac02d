"""FastVGG11, compared with the plain VGG11 that it is stored as."""

import pytest
import torch
from torch import nn

from vgg_ddp.model.fast_vgg import FastVGG11
from vgg_ddp.model.vgg import VGG11


@pytest.fixture
def model() -> FastVGG11:
    torch.manual_seed(3)
    return FastVGG11(7)


@pytest.mark.parametrize("size", [32, 64])
def test_stored_form_is_equivalent(model: FastVGG11, size: int) -> None:
    generator = torch.Generator().manual_seed(1)
    for stage in model.stages():
        for tensor in (stage.norm.bias, stage.norm.running_mean):
            assert tensor is not None
            tensor.data.normal_(std=0.1, generator=generator)
        assert stage.norm.running_var is not None
        stage.norm.running_var.uniform_(0.5, 2.0, generator=generator)
    model.double().eval()
    plain = model.to_stored().double().eval()
    inputs = torch.randn(4, 3, size, size, dtype=torch.float64, generator=generator)
    with torch.no_grad():
        torch.testing.assert_close(plain(inputs), model(inputs), rtol=1e-5, atol=1e-7)


def test_stored_form_has_the_names_and_shapes_of_vgg11(model: FastVGG11) -> None:
    shapes = {name: tensor.shape for name, tensor in model.to_stored().state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in VGG11(7).state_dict().items()}


def test_filters_biases_of_norms_and_the_classifier_are_trained(model: FastVGG11) -> None:
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    expected = {f"features.{index}.convolution.weight" for index in range(8)}
    expected |= {f"features.{index}.norm.bias" for index in range(8)} | {"classifier.weight"}
    assert trained == expected


def test_all_stages_but_the_first_can_start_as_identities(model: FastVGG11) -> None:
    inputs = torch.randn(2, 256, 4, 4)
    convolution = model.stages()[4].convolution
    assert (convolution.in_channels, convolution.out_channels) == (256, 512)
    first, last_half = model.stages()[0].convolution.weight.clone(), convolution.weight[256:].clone()
    model.start_as_identity()
    with torch.no_grad():
        torch.testing.assert_close(convolution(inputs)[:, :256], inputs)
    assert torch.equal(model.stages()[0].convolution.weight, first)
    assert torch.equal(convolution.weight[256:], last_half)


def test_classifier_starts_with_a_standard_deviation_of_one(model: FastVGG11) -> None:
    assert model.classifier.weight.std().item() == pytest.approx(1.0)


def test_nonpositive_scales_are_rejected(model: FastVGG11) -> None:
    plain = VGG11(7)
    norms = [layer for layer in plain.features if isinstance(layer, nn.BatchNorm2d)]
    norms[1].weight.data[3] = -0.1
    with pytest.raises(ValueError, match="use --recipe classic"):
        model.from_stored(plain, with_head=True)
