"""3x3 convolutions with a quarter of the multiplications: Winograd's minimal filtering F(4x4, 3x3).

A tile of 4x4 output pixels takes 36 multiplications per pair of channels, one at each of 6x6 points, instead of 144.
See "Fast Algorithms for Convolutional Neural Networks" (Lavin and Gray, 2015, https://arxiv.org/abs/1509.09308). Maps
of 2x2 pixels take 9 multiplications instead of 16, using Karatsuba's method for products of Toeplitz matrices.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

Rows = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Tiling:
    """The matrices that convolve one row of a tile with one row of a filter.

    Attributes:
        pixels: number of output pixels in the row.
        of_input: (P, pixels + 2), transforms the tile's input to P points.
        of_taps: (P, 3), transforms the filter to P points.
        of_output: (pixels, P), transforms the products of both to the output.
    """

    pixels: int
    of_input: Rows
    of_taps: Rows
    of_output: Rows


# The points are 0, +-3/4, +-3/2 and infinity: with the usual 0, +-1, +-2 and infinity, rounding errors are twice as
# large. See "Error Analysis and Improving the Accuracy of Winograd Convolution for Deep Neural Networks" (Barabasz et
# al., 2018, https://arxiv.org/abs/1803.10986).
TILES_OF_4 = Tiling(
    pixels=4,
    of_input=(
        (81 / 64, 0, -45 / 16, 0, 1, 0),
        (0, -27 / 16, -9 / 4, 3 / 4, 1, 0),
        (0, 27 / 16, -9 / 4, -3 / 4, 1, 0),
        (0, -27 / 32, -9 / 16, 3 / 2, 1, 0),
        (0, 27 / 32, -9 / 16, -3 / 2, 1, 0),
        (0, 81 / 64, 0, -45 / 16, 0, 1),
    ),
    of_taps=(
        (64 / 81, 0, 0),
        (-128 / 243, -32 / 81, -8 / 27),
        (-128 / 243, 32 / 81, -8 / 27),
        (32 / 243, 16 / 81, 8 / 27),
        (32 / 243, -16 / 81, 8 / 27),
        (0, 0, 1),
    ),
    of_output=(
        (1, 1, 1, 1, 1, 0),
        (0, 3 / 4, -3 / 4, 3 / 2, -3 / 2, 0),
        (0, 9 / 16, 9 / 16, 9 / 4, 9 / 4, 0),
        (0, 27 / 64, -27 / 64, 27 / 8, -27 / 8, 1),
    ),
)
# The whole map is one tile, so everything around its pixels is padding.
MAP_OF_2 = Tiling(
    pixels=2,
    of_input=((0, 1, 1, 0), (0, 0, 1, 0), (0, 1, 0, 0)),
    of_taps=((0, 1, 0), (0, -1, 1), (1, -1, 0)),
    of_output=((1, 1, 0), (1, 0, 1)),
)


def tiling_of(size: int) -> Tiling | None:
    """The tiling for a map of this height and width, or None if there is none."""
    if size == MAP_OF_2.pixels:
        return MAP_OF_2
    return TILES_OF_4 if size % TILES_OF_4.pixels == 0 else None


class WinogradConvolution(torch.autograd.Function):
    """A 3x3 convolution with padding 1, for square maps that have a tiling.

    In fp32, its rounding errors are about as large as those of direct sums; in bf16, they are ten times larger, about
    2 % of the result.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, images: Tensor, weight: Tensor) -> Tensor:
        """Map (N, I, H, H), channels last, and filters (O, I, 3, 3) to (N, O, H, H) of the images' dtype."""
        size = images.shape[2]
        tiling = tiling_of(size)
        assert tiling is not None
        of_input, of_taps, of_output = _matrices(tiling, size, images.dtype)
        taps = _transform(of_taps, weight.to(images.dtype).permute(2, 3, 0, 1).flatten(0, 1))
        points = _transform(of_input, _cut(images.permute(0, 2, 3, 1), math.isqrt(of_input.shape[1]), tiling.pixels))
        ctx.save_for_backward(points, taps, of_input, of_taps, of_output)
        return _join(_transform(of_output, points @ taps.mT), tiling.pixels, size).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, Tensor]:
        points, taps, of_input, of_taps, of_output = ctx.saved_tensors  # type: ignore[attr-defined]
        size, pixels = gradient.shape[2], math.isqrt(len(of_output))
        tiles = _cut(gradient.to(points.dtype).permute(0, 2, 3, 1), pixels, pixels)
        gradient = _transform(of_output.T, tiles)
        of_images = _join(_transform(of_input.T, gradient @ taps), pixels, size).permute(0, 3, 1, 2)
        of_weight = _transform(of_taps.T, gradient.mT @ points)
        return of_images, of_weight.view(3, 3, *taps.shape[1:]).permute(2, 3, 0, 1)


def _matrices(tiling: Tiling, size: int, dtype: torch.dtype) -> list[Tensor]:
    """The 2-D transforms of a tile's input, of the filter, and of the products: (P P, W W), and so on."""
    of_input = torch.tensor(tiling.of_input, dtype=torch.float64)
    if size == tiling.pixels:
        # A single tile reads only zeros around the map.
        of_input = of_input[:, 1:-1]
    others = (torch.tensor(rows, dtype=torch.float64) for rows in (tiling.of_taps, tiling.of_output))
    return [torch.kron(rows, rows).to(dtype) for rows in (of_input, *others)]


def _transform(matrix: Tensor, tensor: Tensor) -> Tensor:
    """Map (A, M, C) by (B, A) to (B, M, C)."""
    return (matrix @ tensor.flatten(1)).view(len(matrix), *tensor.shape[1:])


def _cut(images: Tensor, width: int, pixels: int) -> Tensor:
    """Cut (N, H, H, C) into N T T tiles with sides of `pixels`, with or without a border of 1: (W W, N T T, C)."""
    if width > pixels:
        count, size, _, channels = images.shape
        padded = images.new_zeros(count, size + 2, size + 2, channels)
        padded[:, 1:-1, 1:-1] = images
        images = padded
    tiles = images.unfold(1, width, pixels).unfold(2, width, pixels)
    return tiles.permute(4, 5, 0, 1, 2, 3).reshape(width**2, -1, images.shape[3])


def _join(tiles: Tensor, pixels: int, size: int) -> Tensor:
    """The transpose of `_cut`, to (N, H, H, C): overlapping tiles are summed."""
    width, channels, across = math.isqrt(len(tiles)), tiles.shape[2], size // pixels
    tiles = tiles.view(width, width, -1, across, across, channels).permute(2, 3, 0, 4, 1, 5)
    count = len(tiles)
    if width == pixels:
        return tiles.reshape(count, size, size, channels).contiguous()
    # The map has a border of one pixel; two further rows and columns stay zero. Adjacent tiles overlap by two pixels.
    padded = tiles.new_zeros(count, across + 1, pixels, across + 1, pixels, channels)
    padded[:, :across, :, :across] = tiles[:, :, :pixels, :, :pixels]
    padded[:, 1:, :2, :across] += tiles[:, :, pixels:, :, :pixels]
    padded[:, :across, :, 1:, :2] += tiles[:, :, :pixels, :, pixels:]
    padded[:, 1:, :2, 1:, :2] += tiles[:, :, pixels:, :, pixels:]
    whole = padded.view(count, size + pixels, size + pixels, channels)
    return whole[:, 1 : size + 1, 1 : size + 1].contiguous()
