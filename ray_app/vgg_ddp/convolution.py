"""3 x 3 convolutions, where it pays as matrix products: on CPUs these cost less than the general convolution."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn.grad import conv2d_input

from vgg_ddp.winograd import TILES_OF_4, Tiling, WinogradConvolution, tiling_of

# On larger maps the general convolution is as fast, but for Winograd's.
LARGEST_MAP = 4
# With fewer channels, or tiles of 4 x 4 in a batch, the transforms take longer than the products that they spare.
LEAST_CHANNELS = 128
LEAST_TILES = 32


def tiling_that_pays(count: int, in_channels: int, out_channels: int, size: int) -> Tiling | None:
    """How Winograd's convolution divides so many maps of this height and width, where it takes the least time."""
    tiling = tiling_of(size)
    if tiling is not TILES_OF_4:
        return tiling
    tiles = count * (size // tiling.pixels) ** 2
    return tiling if min(in_channels, out_channels) >= LEAST_CHANNELS and tiles >= LEAST_TILES else None


class Conv3x3(nn.Conv2d):
    """A 3 x 3 convolution with padding 1: `nn.Conv2d`, with its parameters and, but for rounding, its results."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, kernel_size=3, padding=1, bias=bias)

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H, W)."""
        function = self._cheapest(images)
        if function is None:
            return super().forward(images)
        output: Tensor = function.apply(images.contiguous(memory_format=torch.channels_last), self.weight)
        return output if self.bias is None else output + self.bias.to(output.dtype)[:, None, None]

    def _cheapest(self, images: Tensor) -> type[torch.autograd.Function] | None:
        """What takes the least time for images like these; none: the general convolution."""
        count, channels, height, width = images.shape
        if images.device.type != "cpu" or height != width:
            return None
        if tiling_that_pays(count, channels, self.out_channels, height):
            return WinogradConvolution
        return ConvolutionOnSmallMap if height <= LARGEST_MAP else None


class ConvolutionOnSmallMap(torch.autograd.Function):
    """The general convolution, but for the gradient of the filters."""

    @staticmethod
    def forward(ctx: FunctionCtx, images: Tensor, weight: Tensor) -> Tensor:
        """Map (N, I, H, W), channels last, and filters (O, I, 3, 3) to (N, O, H, W) of the images' type."""
        weight = weight.to(images.dtype)
        ctx.save_for_backward(images, weight)
        return F.conv2d(images, weight, padding=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, Tensor]:
        images, weight = ctx.saved_tensors  # type: ignore[attr-defined]
        gradient = gradient.to(images.dtype).contiguous(memory_format=torch.channels_last)
        of_images = conv2d_input(images.shape, weight, gradient, padding=1)
        return of_images, _gradient_of_filters(images.permute(0, 2, 3, 1), gradient.permute(0, 2, 3, 1))


def _gradient_of_filters(pixels: Tensor, gradient: Tensor) -> Tensor:
    """The gradient (O, I, 3, 3), channels last, from (N, H, H, I) and (N, H, H, O): a matrix product for each tap."""
    size, ins, outs = *pixels.shape[2:], gradient.shape[3]
    # For each tap of a row or column of the filter: the pixels it reads from, and those it adds to.
    overlaps = [
        (slice(0, size - 1), slice(1, size)),
        (slice(0, size), slice(0, size)),
        (slice(1, size), slice(0, size - 1)),
    ]
    of_filters = torch.empty(outs, 3, 3, ins, dtype=torch.promote_types(pixels.dtype, torch.float32))
    for ky, (from_rows, to_rows) in enumerate(overlaps):
        for kx, (from_columns, to_columns) in enumerate(overlaps):
            source = pixels[:, from_rows, from_columns].reshape(-1, ins)
            target = gradient[:, to_rows, to_columns].reshape(-1, outs)
            of_filters[:, ky, kx] = target.T @ source
    return of_filters.permute(0, 3, 1, 2)
