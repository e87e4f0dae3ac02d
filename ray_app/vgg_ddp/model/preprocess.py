"""Convert decoded images to model inputs: normalized, in channels_last memory, optionally at half size."""

import torch
from torch import Tensor
from torch.nn import functional as F


def normalize(images: Tensor, mean: Tensor, std: Tensor, dtype: torch.dtype) -> Tensor:
    """Normalize uint8 images (N, H, W, 3) with the channels' mean and standard deviation (3,), in units of 0..255.

    Returns:
        (N, 3, H, W) of `dtype` in channels_last memory format.

    Raises:
        TypeError: if images are not uint8.
    """
    if images.dtype != torch.uint8:
        raise TypeError(f"expected uint8 images, got {images.dtype}")
    # Whole rows: an inner dimension of 3 does not vectorize.
    width = images.shape[2]
    rows = images.float().flatten(2).sub_(mean.repeat(width)).div_(std.repeat(width))
    return rows.to(dtype).view(images.shape).permute(0, 3, 1, 2)


def halve(images: Tensor) -> Tensor:
    """Images (N, C, H, W) at half the height and width: each pixel is the mean of four."""
    return F.avg_pool2d(images, 2)
