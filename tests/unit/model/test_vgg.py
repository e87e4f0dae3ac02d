"""VGG11, compared with torchvision."""

from itertools import pairwise

import pytest
import torch
from torch import nn
from torchvision.models import vgg11_bn

from vgg_ddp.model.vgg import VGG11


@pytest.fixture(scope="module")
def reference() -> nn.Module:
    """torchvision's layers with random weights and statistics, without its large fully connected layers."""
    with torch.device("meta"):
        features = vgg11_bn(num_classes=10).features
    features = features.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for name, tensor in features.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) * (1.0 if name.endswith("var") else 0.05))
        else:
            tensor.zero_()
    return features.double().eval()


@pytest.mark.parametrize("size", [32, 64])
def test_features_equal_those_of_torchvision(reference: nn.Module, size: int) -> None:
    model = VGG11(10).double().eval()
    model.features.load_state_dict(reference.state_dict(), strict=True)
    images = torch.randn(2, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = reference(images)
        torch.testing.assert_close(model.features(images), expected)
        assert expected.shape == (2, 512, size // 32, size // 32)
        logits = expected.mean(dim=(2, 3)) @ model.classifier.weight.T + model.classifier.bias
        torch.testing.assert_close(model(images), logits)


def test_parameter_count_equals_a_manual_count() -> None:
    channels = [3, 64, 128, 256, 256, 512, 512, 512, 512]
    convolutions = sum(9 * a * b + b for a, b in pairwise(channels))
    batch_norms = sum(2 * b for b in channels[1:])
    expected = convolutions + batch_norms + 512 * 10 + 10
    assert expected == 9_231_114
    assert sum(parameter.numel() for parameter in VGG11(10).parameters()) == expected


def test_first_predictions_are_nearly_uniform() -> None:
    torch.manual_seed(0)
    model = VGG11(10).eval()
    with torch.no_grad():
        probabilities = model(torch.randn(4, 3, 32, 32)).softmax(dim=1)
    assert (probabilities - 0.1).abs().max() < 0.05
