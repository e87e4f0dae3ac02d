"""Winograd's convolutions, compared with torch."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vgg_ddp.model.conv import FastConv2d
from vgg_ddp.model.winograd import WinogradConvolution


def make(size: int, channels: tuple[int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Images, filters, and weights for a weighted sum of the outputs."""
    torch.manual_seed(0)
    ins, outs = channels
    images = torch.randn(8, ins, size, size, dtype=dtype).to(memory_format=torch.channels_last).requires_grad_()
    filters = torch.randn(outs, ins, 3, 3, dtype=dtype).requires_grad_()
    return images, filters, torch.randn(8, outs, size, size, dtype=dtype)


def outputs_and_gradients(output: Tensor, weights: Tensor, *inputs: Tensor) -> list[Tensor]:
    return [output, *torch.autograd.grad((output * weights).sum(), inputs)]


@pytest.mark.parametrize("size", [2, 4, 8, 12])
def test_outputs_and_gradients_equal_those_of_torch(size: int) -> None:
    images, filters, weights = make(size, (5, 7), torch.float64)
    found = outputs_and_gradients(WinogradConvolution.apply(images, filters), weights, images, filters)
    expected = outputs_and_gradients(F.conv2d(images, filters, padding=1), weights, images, filters)
    for ours, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, reference)
    assert found[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 3e-6), (torch.bfloat16, 0.025)])
@pytest.mark.parametrize("size", [2, 4, 8, 16])
def test_rounding_errors_are_small(size: int, dtype: torch.dtype, bound: float) -> None:
    images, filters, weights = make(size, (256, 256), dtype)
    found = outputs_and_gradients(WinogradConvolution.apply(images, filters), weights, images, filters)
    precise = [tensor.detach().double().requires_grad_() for tensor in (images, filters)]
    expected = outputs_and_gradients(F.conv2d(*precise, padding=1), weights.double(), *precise)
    for ours, reference in zip(found, expected, strict=True):
        assert (ours - reference).norm() < bound * reference.norm()


@pytest.mark.parametrize(
    ("count", "channels", "size", "dtype", "is_taken"),
    [
        (32, 128, 4, torch.float32, True),
        (8, 128, 8, torch.float32, True),
        (31, 128, 4, torch.float32, False),
        (32, 64, 4, torch.float32, False),
        (32, 128, 6, torch.float32, False),
        (32, 128, 2, torch.float32, True),
        (32, 128, 4, torch.bfloat16, True),
        (31, 128, 4, torch.bfloat16, False),
        (1, 64, 2, torch.bfloat16, True),
    ],
)
def test_winograd_is_used_where_it_is_faster(
    count: int, channels: int, size: int, dtype: torch.dtype, is_taken: bool
) -> None:
    torch.manual_seed(0)
    convolution = FastConv2d(channels, 128, kernel_size=3, padding=1).to(memory_format=torch.channels_last)
    images = torch.randn(count, channels, size, size, dtype=dtype).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        output = convolution(images)
        expected = F.conv2d(images, convolution.weight, convolution.bias, padding=1)
    # In bf16, Winograd's algorithm has larger rounding errors.
    atol = 1e-4 if dtype == torch.float32 else 0.08 if is_taken else 0.02
    torch.testing.assert_close(output, expected, rtol=0.01, atol=atol)
    # Below the addition of the biases in the graph.
    assert output.grad_fn is not None
    functions = {output.grad_fn, *(function for function, _ in output.grad_fn.next_functions if function)}
    assert any(function.name() == "WinogradConvolutionBackward" for function in functions) is is_taken
