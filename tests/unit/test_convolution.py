"""Convolutions on small maps against torch's own."""

import pytest
import torch
import torch.nn.functional as F

from vgg_ddp.convolution import Conv3x3


def make(size: int, dtype: torch.dtype, bias: bool = True) -> tuple[Conv3x3, torch.Tensor, torch.Tensor]:
    """A convolution of 5 channels to 7, images for it, and weights for a sum of its outputs."""
    torch.manual_seed(0)
    convolution = Conv3x3(5, 7, bias).to(dtype, memory_format=torch.channels_last)
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
def test_maps_that_are_not_square_take_the_general_way(shape: tuple[int, int]) -> None:
    convolution = Conv3x3(5, 7)
    images = torch.randn(3, 5, *shape)
    expected = F.conv2d(images, convolution.weight, convolution.bias, padding=1)
    torch.testing.assert_close(convolution(images), expected)
