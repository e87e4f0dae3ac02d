"""Draw the validation images from the training split: the same ones however the images are read and trained on."""

import numpy as np
import numpy.typing as npt

from vgg_ddp.flags import UsageError

Indices = npt.NDArray[np.int64]
# Keeps this draw apart from those of the epochs (feeds/augment.py, feeds/stream_feed.py), which use the same seed.
STREAM = (0, 3)


def split_off_validation(labels: npt.NDArray[np.int64], fraction: float, seed: int) -> tuple[Indices, Indices]:
    """Indices of the images to train on and of those to validate with, each in ascending order.

    The draw is stratified: of each class, this fraction, rounded up or down so that the total is right. A class keeps
    at least one training image.

    Raises:
        UsageError: if no validation image can be drawn.
    """
    generator = np.random.default_rng([seed, *STREAM])
    shuffled = generator.permutation(len(labels))
    sizes = np.bincount(labels)
    counts = _counts_per_class(sizes, fraction, generator)
    # Sorted by class, and shuffled within each class.
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    rank_in_class = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    validation = np.sort(by_class[rank_in_class < np.repeat(counts, sizes)])
    if not len(validation):
        raise UsageError(
            f"--validation-fraction {fraction}: no image of the {len(labels)} training images would be left out; use a "
            "higher fraction (a class with a single image keeps it for training)."
        )
    return np.setdiff1d(np.arange(len(labels)), validation, assume_unique=True), validation


def _counts_per_class(sizes: Indices, fraction: float, generator: np.random.Generator) -> Indices:
    """Validation images of each class: those with the largest remainders are rounded up, ties in random order."""
    shares = sizes * fraction
    counts = np.floor(shares).astype(np.int64)
    ties = generator.permutation(len(sizes))
    by_remainder = np.lexsort((ties, counts - shares))
    counts[by_remainder[: round(float(shares.sum())) - int(counts.sum())]] += 1
    most: Indices = np.minimum(counts, np.maximum(sizes - 1, 0))
    return most
