"""3 x 3 convolutions with a quarter of the products: Winograd's minimal filtering F(4 x 4, 3 x 3).

A tile of 4 x 4 output pixels takes 36 products per pair of channels, one at each of 6 x 6 points, in place of 144. See
"Fast Algorithms for Convolutional Neural Networks" (Lavin and Gray, 2015, https://arxiv.org/abs/1509.09308). Maps of
2 x 2 pixels take 9 products in place of 16, like products of Toeplitz matrices by Karatsuba's way.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

Rows = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Tiling:
    """How one row of a tile is convolved with one row of a filter.

    Attributes:
        pixels: of the tile's output.
        of_input: (P, pixels + 2), maps what the tile reads to P points.
        of_taps: (P, 3), maps the filter to points.
        of_output: (pixels, P), maps the products of both to the output.
    """

    pixels: int
    of_input: Rows
    of_taps: Rows
    of_output: Rows


TILES_OF_4 = Tiling(
    pixels=4,
    of_input=(
        (4, 0, -5, 0, 1, 0),
        (0, -4, -4, 1, 1, 0),
        (0, 4, -4, -1, 1, 0),
        (0, -2, -1, 2, 1, 0),
        (0, 2, -1, -2, 1, 0),
        (0, 4, 0, -5, 0, 1),
    ),
    of_taps=(
        (1 / 4, 0, 0),
        (-1 / 6, -1 / 6, -1 / 6),
        (-1 / 6, 1 / 6, -1 / 6),
        (1 / 24, 1 / 12, 1 / 6),
        (1 / 24, -1 / 12, 1 / 6),
        (0, 0, 1),
    ),
    of_output=((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1)),
)
# The whole map: what lies beside its two pixels is zero.
MAP_OF_2 = Tiling(
    pixels=2,
    of_input=((0, 1, 1, 0), (0, 0, 1, 0), (0, 1, 0, 0)),
    of_taps=((0, 1, 0), (0, -1, 1), (1, -1, 0)),
    of_output=((1, 1, 0), (1, 0, 1)),
)


def tiling_of(size: int) -> Tiling | None:
    """How to divide a map of this height and width, if that is possible."""
    if size == MAP_OF_2.pixels:
        return MAP_OF_2
    return TILES_OF_4 if size % TILES_OF_4.pixels == 0 else None


class WinogradConvolution(torch.autograd.Function):
    """A 3 x 3 convolution with padding 1, on square maps that have a tiling.

    Its rounding errors are up to ten times those of the plain sum: fit for fp32, not for bf16.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, images: Tensor, weight: Tensor) -> Tensor:
        """Map (N, I, H, H), channels last, and filters (O, I, 3, 3) to (N, O, H, H) of the images' type."""
        outs, ins, size = *weight.shape[:2], images.shape[2]
        tiling = tiling_of(size)
        assert tiling is not None
        reading, writing = _of_a_row(tiling, size, images.dtype)
        of_taps = torch.tensor(tiling.of_taps, dtype=images.dtype)
        of_taps = torch.kron(of_taps, of_taps)
        taps = (of_taps @ weight.to(images.dtype).permute(2, 3, 0, 1).reshape(9, outs * ins)).view(-1, outs, ins)
        points = _to_points(reading, images.permute(0, 2, 3, 1), len(tiling.of_taps))
        ctx.save_for_backward(points, taps, reading, writing, of_taps)
        return _from_points(writing, points @ taps.mT).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, Tensor]:
        points, taps, reading, writing, of_taps = ctx.saved_tensors  # type: ignore[attr-defined]
        side = math.isqrt(len(points))
        gradient = _to_points(writing.T, gradient.to(points.dtype).permute(0, 2, 3, 1), side)
        of_images = _from_points(reading.T, gradient @ taps).permute(0, 3, 1, 2)
        of_weight = of_taps.T @ (gradient.mT @ points).flatten(1)
        return of_images, of_weight.view(3, 3, *taps.shape[1:]).permute(2, 3, 0, 1)


def _of_a_row(tiling: Tiling, size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What reads a row of T tiles, (P T, size), and what writes one, (size, P T): first by points, then by tiles."""
    of_input, of_output = (torch.tensor(rows, dtype=dtype) for rows in (tiling.of_input, tiling.of_output))
    # For each tile, which pixel of the padded row is which of its own.
    pixels = torch.eye(size + 2, dtype=dtype).unfold(0, tiling.pixels + 2, tiling.pixels)
    reading = torch.einsum("pk,tik->pti", of_input, pixels)[..., 1:-1]
    tiles = torch.eye(size // tiling.pixels, dtype=dtype)
    writing = torch.einsum("kp,ts->tkps", of_output, tiles)
    return reading.flatten(0, 1), writing.flatten(2).flatten(0, 1)


def _to_points(matrix: Tensor, images: Tensor, side: int) -> Tensor:
    """Map (N, H, H, C) in both directions by (P T, H) to (P P, T T N, C), P being the side."""
    count, size, _, channels = images.shape
    rows = matrix @ images.reshape(count, size, size * channels)
    both = matrix @ rows.view(-1, size, channels)
    split = both.view(count, side, len(matrix) // side, side, len(matrix) // side, channels)
    return split.permute(1, 3, 2, 4, 0, 5).reshape(side**2, -1, channels)


def _from_points(matrix: Tensor, points: Tensor) -> Tensor:
    """Map (P P, T T N, C) in both directions by (H, P T) to (N, H, H, C)."""
    size, width = matrix.shape
    side, channels = math.isqrt(len(points)), points.shape[2]
    split = points.view(side, side, width // side, width // side, -1, channels).permute(4, 0, 2, 1, 3, 5)
    columns = matrix @ split.reshape(-1, width, width * channels)
    both: Tensor = matrix @ columns.view(-1, width, channels)
    return both.view(-1, size, size, channels)
