"""3 x 3 convolutions with a quarter of the products: Winograd's minimal filtering F(4 x 4, 3 x 3).

A tile of 4 x 4 output pixels takes 36 products per pair of channels, one at each of 6 x 6 points, in place of 144. See
"Fast Algorithms for Convolutional Neural Networks" (Lavin and Gray, 2015, https://arxiv.org/abs/1509.09308).
"""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

TILE = 4
POINTS = 6
# The matrices of that paper, for one dimension: 6 input pixels to points, 3 taps to points, points to 4 output pixels.
OF_INPUT = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
OF_TAPS = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
OF_OUTPUT = (
    (1, 1, 1, 1, 1, 0),
    (0, 1, -1, 2, -2, 0),
    (0, 1, 1, 4, 4, 0),
    (0, 1, -1, 8, -8, 1),
)


class WinogradConvolution(torch.autograd.Function):
    """A 3 x 3 convolution with padding 1, on square maps whose sides are multiples of 4.

    Its rounding errors are some ten times those of the plain sum: fit for fp32, not for bf16.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, images: Tensor, weight: Tensor) -> Tensor:
        """Map (N, I, H, H), channels last, and filters (O, I, 3, 3) to (N, O, H, H) of the images' type."""
        outs, ins = weight.shape[:2]
        reading, writing = _of_a_row(images.shape[2], images.dtype)
        of_taps = torch.tensor(OF_TAPS, dtype=images.dtype)
        of_taps = torch.kron(of_taps, of_taps)
        taps = (of_taps @ weight.to(images.dtype).permute(2, 3, 0, 1).reshape(9, outs * ins)).view(-1, outs, ins)
        points = _to_points(reading, images.permute(0, 2, 3, 1))
        ctx.save_for_backward(points, taps, reading, writing, of_taps)
        return _from_points(writing, points @ taps.mT).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, Tensor]:
        points, taps, reading, writing, of_taps = ctx.saved_tensors  # type: ignore[attr-defined]
        gradient = _to_points(writing.T, gradient.to(points.dtype).permute(0, 2, 3, 1))
        of_images = _from_points(reading.T, gradient @ taps).permute(0, 3, 1, 2)
        of_weight = of_taps.T @ (gradient.mT @ points).flatten(1)
        return of_images, of_weight.view(3, 3, *taps.shape[1:]).permute(2, 3, 0, 1)


def _of_a_row(size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What reads a row of T tiles, (6 T, size), and what writes one, (size, 6 T): first by points, then by tiles."""
    # For each tile, which pixel of the padded row is which of its six.
    pixels = torch.eye(size + 2, dtype=dtype).unfold(0, POINTS, TILE)
    reading = torch.einsum("pk,tik->pti", torch.tensor(OF_INPUT, dtype=dtype), pixels)[..., 1:-1]
    tiles = torch.eye(size // TILE, dtype=dtype)
    writing = torch.einsum("kp,ts->tkps", torch.tensor(OF_OUTPUT, dtype=dtype), tiles)
    return reading.flatten(0, 1), writing.flatten(2).flatten(0, 1)


def _to_points(matrix: Tensor, images: Tensor) -> Tensor:
    """Map (N, H, H, C) in both directions by (6 T, H) to (36, T T N, C)."""
    count, size, _, channels = images.shape
    rows = matrix @ images.reshape(count, size, size * channels)
    both = matrix @ rows.view(-1, size, channels)
    split = both.view(count, POINTS, len(matrix) // POINTS, POINTS, len(matrix) // POINTS, channels)
    return split.permute(1, 3, 2, 4, 0, 5).reshape(POINTS**2, -1, channels)


def _from_points(matrix: Tensor, points: Tensor) -> Tensor:
    """Map (36, T T N, C) in both directions by (H, 6 T) to (N, H, H, C)."""
    size, width = matrix.shape
    tiles, channels = width // POINTS, points.shape[2]
    split = points.view(POINTS, POINTS, tiles, tiles, -1, channels).permute(4, 0, 2, 1, 3, 5)
    columns = matrix @ split.reshape(-1, width, width * channels)
    both: Tensor = matrix @ columns.view(-1, width, channels)
    return both.view(-1, size, size, channels)
