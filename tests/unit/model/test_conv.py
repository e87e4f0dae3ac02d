"""Convolutions on small maps, compared with torch."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vgg_ddp.model.conv import FastConv2d, use_fast_convolutions


def make(size: int, dtype: torch.dtype, bias: bool = True) -> tuple[FastConv2d, torch.Tensor, torch.Tensor]:
    """A convolution from 5 to 7 channels, input images, and weights for a weighted sum of the outputs."""
    torch.manual_seed(0)
    convolution = FastConv2d(5, 7, kernel_size=3, padding=1, bias=bias).to(dtype, memory_format=torch.channels_last)
    images = torch.randn(3, 5, size, size, dtype=dtype).to(memory_format=torch.channels_last)
    return convolution, images.requires_grad_(), torch.randn(3, 7, size, size, dtype=dtype)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8])
def test_outputs_and_gradients_equal_those_of_torch(size: int, bias: bool) -> None:
    convolution, images, weights = make(size, torch.float64, bias)
    output = convolution(images)
    inputs = [images, *convolution.parameters()]
    expected = F.conv2d(images, convolution.weight, convolution.bias, padding=1)
    torch.testing.assert_close(output, expected)
    gradients = torch.autograd.grad((output * weights).sum(), inputs)
    for gradient, reference in zip(gradients, torch.autograd.grad((expected * weights).sum(), inputs), strict=True):
        torch.testing.assert_close(gradient, reference)


@pytest.mark.parametrize("size", [2, 4, 8])
def test_autocast_gives_bf16_maps_and_fp32_gradients_of_filters(size: int) -> None:
    convolution, images, weights = make(size, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        output = convolution(images.bfloat16())
    assert output.dtype == torch.bfloat16
    (output.float() * weights).sum().backward()
    assert convolution.weight.grad is not None and convolution.weight.grad.dtype == torch.float32
    precise, _, _ = make(size, torch.float32)
    (precise(images) * weights).sum().backward()
    assert precise.weight.grad is not None
    torch.testing.assert_close(convolution.weight.grad, precise.weight.grad, rtol=0.05, atol=0.2)


@pytest.mark.parametrize("shape", [(2, 4), (4, 2), (1, 4)])
def test_maps_that_are_not_square_use_torchs_convolution(shape: tuple[int, int]) -> None:
    convolution = FastConv2d(5, 7, kernel_size=3, padding=1)
    images = torch.randn(3, 5, *shape)
    expected = F.conv2d(images, convolution.weight, convolution.bias, padding=1)
    torch.testing.assert_close(convolution(images), expected)


def test_autocast_casts_fp32_maps_as_torch_does() -> None:
    convolution, images, _ = make(4, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        output = convolution(images)
        expected = F.conv2d(images, convolution.weight, convolution.bias, padding=1)
    assert output.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(output, expected, rtol=0.02, atol=0.1)


def test_plain_3x3_convolutions_are_replaced_and_keep_their_parameters() -> None:
    block = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), block).eval()
    before, random_state = dict(model.named_parameters()), torch.get_rng_state()
    use_fast_convolutions(model)
    assert isinstance(model[0], FastConv2d) and isinstance(block[0], FastConv2d)
    assert not model[0].training
    after = dict(model.named_parameters())
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 4, 3, padding=1, stride=2),
        nn.Conv2d(4, 4, 3, padding=1, groups=2),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(4, 4, 3),
        nn.Conv2d(4, 4, 1),
        nn.ConvTranspose2d(4, 4, 3, padding=1),
    ],
    ids=str,
)
def test_other_convolutions_are_not_replaced(layer: nn.Module) -> None:
    model = nn.Sequential(layer)
    use_fast_convolutions(model)
    assert model[0] is layer
