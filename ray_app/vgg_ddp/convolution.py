"""3 x 3 convolutions, where it pays as matrix products: on CPUs these cost less than the general convolution."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn.grad import conv2d_input

from vgg_ddp.winograd import Tiling, WinogradConvolution, tiling_of

# On larger maps the general convolution is as fast, but for Winograd's.
LARGEST_MAP = 4
# With fewer channels, or tiles in a batch, the transforms take longer than the products that they spare.
LEAST_CHANNELS = 128
LEAST_TILES = 32
# The four pixels of a 2 x 2 map. Between them lie 16 of the 36 products of a padded convolution; the others meet zeros.
PIXELS = [(row, column) for row in range(2) for column in range(2)]


def tiling_that_pays(in_channels: int, out_channels: int, size: int) -> Tiling | None:
    """How Winograd's convolution divides maps of this height and width, where batches are large enough for it."""
    return tiling_of(size) if min(in_channels, out_channels) >= LEAST_CHANNELS else None


class Conv3x3(nn.Conv2d):
    """A 3 x 3 convolution with padding 1, in its results and its parameters equal to `nn.Conv2d`."""

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
        tiling = tiling_that_pays(channels, self.out_channels, height)
        is_precise = images.dtype in (torch.float32, torch.float64)
        if tiling and is_precise and count * (height // tiling.pixels) ** 2 >= LEAST_TILES:
            return WinogradConvolution
        if height > LARGEST_MAP:
            return None
        return ConvolutionOn2x2 if height == 2 else ConvolutionOnSmallMap


class ConvolutionOn2x2(torch.autograd.Function):
    """One matrix product between all pixels of a 2 x 2 map: 16 taps instead of 36."""

    @staticmethod
    def forward(ctx: FunctionCtx, images: Tensor, weight: Tensor) -> Tensor:
        """Map (N, I, 2, 2), channels last, and filters (O, I, 3, 3) to (N, O, 2, 2) of the images' type."""
        count, (outs, ins) = len(images), weight.shape[:2]
        pixels = images.permute(0, 2, 3, 1).reshape(count, 4 * ins)
        taps = weight.permute(2, 3, 0, 1)
        blocks = torch.empty(4, outs, 4, ins, dtype=images.dtype)
        for to_pixel, (to_row, to_column) in enumerate(PIXELS):
            for from_pixel, (row, column) in enumerate(PIXELS):
                blocks[to_pixel, :, from_pixel] = taps[row - to_row + 1, column - to_column + 1]
        matrix = blocks.view(4 * outs, 4 * ins)
        ctx.save_for_backward(pixels, matrix)
        return (pixels @ matrix.T).view(count, 2, 2, outs).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, Tensor]:
        pixels, matrix = ctx.saved_tensors  # type: ignore[attr-defined]
        count, outs, ins = len(gradient), gradient.shape[1], pixels.shape[1] // 4
        gradient = gradient.permute(0, 2, 3, 1).reshape(count, 4 * outs).to(pixels.dtype)
        of_images = (gradient @ matrix).view(count, 2, 2, ins).permute(0, 3, 1, 2)
        return of_images, _gradient_of_filters(pixels.view(count, 2, 2, ins), gradient.view(count, 2, 2, outs))


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
