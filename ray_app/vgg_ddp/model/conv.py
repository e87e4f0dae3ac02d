"""Fast 3x3 convolutions on a CPU: Winograd's algorithm or matrix products, where they are faster than torch.

`use_fast_convolutions` is the only entry point: models are built from plain `nn.Conv2d`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn.grad import conv2d_input

from vgg_ddp.model.winograd import TILES_OF_4, Tiling, WinogradConvolution, tiling_of

# On larger maps, only Winograd's algorithm is faster than torch.
MAX_SMALL_MAP = 4
# With fewer channels, or fewer 4x4 tiles in a batch, Winograd's transforms cost more than they save.
MIN_CHANNELS = 128
MIN_TILES = 32


def use_fast_convolutions(model: nn.Module) -> None:
    """Replace each 3x3 convolution of a model on the CPU with a faster equivalent.

    Parameters, their names, and the state dict stay the same; results differ by rounding.
    """
    for layer in model.modules():
        if type(layer) is nn.Conv2d and _is_plain_3x3(layer):
            # Only the class changes: a new layer would initialize parameters, which takes most of a second on start-up.
            layer.__class__ = FastConv2d


def _is_plain_3x3(layer: nn.Conv2d) -> bool:
    settings = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups, layer.padding_mode)
    return settings == ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros")


class FastConv2d(nn.Conv2d):
    """A 3x3 convolution with padding 1 that selects the fastest implementation for each batch."""

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H, W)."""
        if torch.is_autocast_enabled("cpu"):
            images = images.to(torch.get_autocast_dtype("cpu"))
        function = fastest(images, self.out_channels)
        if function is None:
            return super().forward(images)
        output: Tensor = function.apply(images.contiguous(memory_format=torch.channels_last), self.weight)
        return output if self.bias is None else output + self.bias.to(output.dtype)[:, None, None]


def fastest(images: Tensor, out_channels: int) -> type[torch.autograd.Function] | None:
    """The fastest implementation for images (N, C, H, W) on a CPU; None: torch's own."""
    count, channels, height, width = images.shape
    if height != width:
        return None
    if tiling_that_pays(count, channels, out_channels, height):
        return WinogradConvolution
    return ConvolutionOnSmallMap if height <= MAX_SMALL_MAP else None


def tiling_that_pays(count: int, in_channels: int, out_channels: int, size: int) -> Tiling | None:
    """Winograd's tiling for `count` maps of this height and width, or None if it would not be faster."""
    tiling = tiling_of(size)
    if tiling is not TILES_OF_4:
        return tiling
    tiles = count * (size // tiling.pixels) ** 2
    return tiling if min(in_channels, out_channels) >= MIN_CHANNELS and tiles >= MIN_TILES else None


class ConvolutionOnSmallMap(torch.autograd.Function):
    """torch's convolution, but with matrix products for the gradient of the filters."""

    @staticmethod
    def forward(ctx: FunctionCtx, images: Tensor, weight: Tensor) -> Tensor:
        """Map (N, I, H, W), channels last, and filters (O, I, 3, 3) to (N, O, H, W) of the images' dtype."""
        weight = weight.to(images.dtype)
        ctx.save_for_backward(images, weight)
        return F.conv2d(images, weight, padding=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, Tensor]:
        images, weight = ctx.saved_tensors  # type: ignore[attr-defined]
        gradient = gradient.to(images.dtype).contiguous(memory_format=torch.channels_last)
        images_gradient = conv2d_input(images.shape, weight, gradient, padding=1)
        return images_gradient, _filter_gradient(images.permute(0, 2, 3, 1), gradient.permute(0, 2, 3, 1))


def _filter_gradient(pixels: Tensor, gradient: Tensor) -> Tensor:
    """The gradient (O, I, 3, 3), channels last, from (N, H, H, I) and (N, H, H, O): one matrix product per tap."""
    size, ins, outs = *pixels.shape[2:], gradient.shape[3]
    # For each tap along one side of the filter: the pixels that it reads and the outputs that it contributes to.
    overlaps = [
        (slice(0, size - 1), slice(1, size)),
        (slice(0, size), slice(0, size)),
        (slice(1, size), slice(0, size - 1)),
    ]
    filters = torch.empty(outs, 3, 3, ins, dtype=torch.promote_types(pixels.dtype, torch.float32))
    for ky, (from_rows, to_rows) in enumerate(overlaps):
        for kx, (from_columns, to_columns) in enumerate(overlaps):
            source = pixels[:, from_rows, from_columns].reshape(-1, ins)
            target = gradient[:, to_rows, to_columns].reshape(-1, outs)
            filters[:, ky, kx] = target.T @ source
    return filters.permute(0, 3, 1, 2)
