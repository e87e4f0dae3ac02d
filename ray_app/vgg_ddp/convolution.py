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
# Between the four pixels of a 2 x 2 map lie 16 of the 36 products of a padded convolution; the others meet zeros.
# For each pair of an output and an input pixel, the tap of the filter that joins them.
PIXELS = [(row, column) for row in range(2) for column in range(2)]
TAPS = [3 * (iy - oy + 1) + (ix - ox + 1) for oy, ox in PIXELS for iy, ix in PIXELS]


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
        taps = weight.to(images.dtype).permute(2, 3, 0, 1).reshape(9, outs, ins)[TAPS]
        matrix = taps.view(4, 4, outs, ins).permute(0, 2, 1, 3).reshape(4 * outs, 4 * ins)
        ctx.save_for_backward(pixels, matrix)
        return (pixels @ matrix.T).view(count, 2, 2, outs).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, Tensor]:
        pixels, matrix = ctx.saved_tensors  # type: ignore[attr-defined]
        count, outs, ins = len(gradient), gradient.shape[1], pixels.shape[1] // 4
        gradient = gradient.permute(0, 2, 3, 1).reshape(count, 4 * outs).to(pixels.dtype)
        of_images = (gradient @ matrix).view(count, 2, 2, ins).permute(0, 3, 1, 2)
        products = (gradient.T @ pixels).view(4, outs, 4, ins)
        of_weight = torch.zeros(9, outs, ins, dtype=torch.promote_types(pixels.dtype, torch.float32))
        for index, tap in enumerate(TAPS):
            of_weight[tap] += products[index // 4, :, index % 4]
        return of_images, of_weight.view(3, 3, outs, ins).permute(2, 3, 0, 1)


class ConvolutionOnSmallMap(torch.autograd.Function):
    """The general convolution, but for the gradient of the filters: nine matrix products of what overlaps."""

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
        (outs, ins), size = weight.shape[:2], images.shape[2]
        gradient = gradient.to(images.dtype).contiguous(memory_format=torch.channels_last)
        of_images = conv2d_input(images.shape, weight, gradient, padding=1)
        from_pixels, to_pixels = images.permute(0, 2, 3, 1), gradient.permute(0, 2, 3, 1)
        # For each tap of a row or column of the filter: the pixels it reads from, and those it adds to.
        overlaps = [
            (slice(0, size - 1), slice(1, size)),
            (slice(0, size), slice(0, size)),
            (slice(1, size), slice(0, size - 1)),
        ]
        of_weight = torch.empty(outs, 3, 3, ins, dtype=torch.promote_types(images.dtype, torch.float32))
        for ky, (from_rows, to_rows) in enumerate(overlaps):
            for kx, (from_columns, to_columns) in enumerate(overlaps):
                source = from_pixels[:, from_rows, from_columns].reshape(-1, ins)
                target = to_pixels[:, to_rows, to_columns].reshape(-1, outs)
                of_weight[:, ky, kx] = target.T @ source
        return of_images, of_weight.permute(0, 3, 1, 2)
