"""Point out images from which nothing can be learned, because they all look alike."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from vgg_ddp.machine import torchrun
from vgg_ddp.run.notes import print_note

Image = npt.NDArray[np.uint8]
# On the scale of 0 to 255.
LOW_DEVIATION = 1.0


def describe_missing_contrast(images: Image | Sequence[Image]) -> str | None:
    """Why nothing can be learned from images, uint8 (N, H, W, 3); None if they differ and have contrast.

    Looks at more than two images only if the first ones are suspicious.
    """
    checked = f"the {len(images):,} training images that were checked"
    if len(images) > 1 and all(np.array_equal(image, images[0]) for image in images[1:]):
        return f"{checked} are all the same once decoded: nothing can be learned from them."
    if all(_is_plain(image) for image in images):
        return f"{checked} have no contrast once decoded: each is a single color."
    return None


def _is_plain(image: Image) -> bool:
    return bool(image.std(axis=(0, 1)).max() < LOW_DEVIATION)


def note_missing_contrast(images: Image, location: str) -> None:
    """Print a NOTE if nothing can be learned from these images; from one of torchrun's processes only."""
    if torchrun.is_rank_zero() and (text := describe_missing_contrast(images)):
        print_note(f"{location}: {text}")
