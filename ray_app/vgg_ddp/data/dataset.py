"""The dataset in memory: both splits, decoded and validated by the driver. Needs torch only for CIFAR-10."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vgg_ddp.data.columns import UNLABELED
from vgg_ddp.data.contrast import note_missing_contrast
from vgg_ddp.data.parquet import merge_class_names, read_files
from vgg_ddp.data.source import CIFAR10_CLASSES, Source, SplitName
from vgg_ddp.data.validation import split_off_validation
from vgg_ddp.flags import UsageError


@dataclass(frozen=True)
class Split:
    """Decoded images, uint8 (N, H, W, 3), and their labels, int64 (N,)."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: npt.NDArray[np.int64]) -> "Split":
        """A copy of some of the images."""
        return Split(self.images[indices], self.labels[indices])


@dataclass(frozen=True)
class Dataset:
    """All splits, decoded.

    Attributes:
        name: shown in messages.
        train: the images to train on.
        class_names: one per label.
        mean: mean of each channel of the training images, on a scale of 0 to 255.
        std: standard deviation of each channel of the training images, on the same scale.
        test_name: name of the split that `test` comes from; None if no test split has labels. `test` is then empty.
        validation: the images of the training split that are left out of training; None without a validation split.
    """

    name: str
    train: Split
    test: Split
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    test_name: str | None = "test"
    validation: Split | None = None

    @property
    def num_train(self) -> int:
        return len(self.train)

    @property
    def num_validation(self) -> int:
        return len(self.validation) if self.validation else 0

    @property
    def num_test(self) -> int:
        return len(self.test)


def load_dataset(source: Source, image_size: int, validation_fraction: float = 0.0, seed: int = 0) -> Dataset:
    """Decode both splits to images of `image_size` x `image_size` pixels; leave the validation images out of `train`.

    Raises:
        UsageError: naming the file and row that is invalid.
    """
    train, names = load_split(source, "train", image_size)
    if source.test_name is None:
        test, test_names = Split(train.images[:0], train.labels[:0]), None
    else:
        test, test_names = load_split(source, "test", image_size)
    names = merge_class_names({"the training split": names, "the test split": test_names}, source.location)
    names = names or name_classes(int(train.labels.max()), len(train), source.location)
    for split_name, split in (("train", train), ("test", test)):
        bad = np.flatnonzero((split.labels < 0) | (split.labels >= len(names)))
        if len(bad):
            raise UsageError(
                f"label {split.labels[bad[0]]} of image {bad[0]} in the {split_name} split of {source.location} is "
                f"out of range: expected 0 to {len(names) - 1}, the classes of the training split."
            )
    validation = None
    if validation_fraction:
        kept, held_out = split_off_validation(train.labels, validation_fraction, seed)
        train, validation = train.select(kept), train.select(held_out)
    note_missing_contrast(train.images, source.name)
    mean, std = channel_statistics(train.images)
    return Dataset(source.name, train, test, names, mean, std, source.test_name, validation)


def name_classes(highest: int, num_images: int, location: str) -> tuple[str, ...]:
    """Name the classes "0", "1", "2", and so on, for data without class names.

    Raises:
        UsageError: if the highest label is too high for the number of images.
    """
    if highest < 0:
        raise UsageError(f"the training split of {location} has no labels: expected labels 0, 1, 2, and so on.")
    if highest >= num_images:
        raise UsageError(
            f"label {highest} in {location} is out of range: with {num_images} training images, expected labels 0, 1, "
            "2, and so on."
        )
    return tuple(str(label) for label in range(highest + 1))


def load_split(source: Source, split: SplitName, image_size: int) -> tuple[Split, tuple[str, ...] | None]:
    """Decode one split; also return the class names, or None if the source has none.

    Raises:
        UsageError: naming the file and row that is invalid.
    """
    if source.layout is None:
        return _load_cifar10(source, split, image_size)
    chosen = source.layout.train if split == "train" else source.test_split
    if chosen is None:
        raise UsageError(f"the test split of {source.location} has no labels (all are {UNLABELED}).")
    images, labels, names = read_files(source.layout.folder, chosen.files, source.columns, image_size)
    decoded = Split(images, labels)
    if not len(decoded):
        raise UsageError(f"the {split} split of {source.location} is empty: expected at least one image.")
    return decoded, source.class_names or names


def _load_cifar10(source: Source, split: SplitName, image_size: int) -> tuple[Split, tuple[str, ...]]:
    from torchvision.datasets import CIFAR10

    try:
        dataset = CIFAR10(source.location, train=split == "train")
    except RuntimeError:
        raise UsageError(
            f"CIFAR-10 in --data-dir {source.location} is damaged: delete cifar-10-batches-py there to unpack or "
            "download it again."
        ) from None
    images = dataset.data
    if image_size != images.shape[1]:
        from PIL import Image

        size = (image_size, image_size)
        resized = (Image.fromarray(image).resize(size, Image.Resampling.BILINEAR) for image in images)
        images = np.stack([np.asarray(image) for image in resized])
    return Split(images, np.asarray(dataset.targets, dtype=np.int64)), CIFAR10_CLASSES


def channel_statistics(images: npt.NDArray[np.uint8]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Exact mean and standard deviation of each channel, computed from histograms."""
    means, stds = [], []
    values = np.arange(256)
    for channel in range(3):
        counts = np.bincount(images[..., channel].reshape(-1), minlength=256)
        mean = float((counts * values).sum() / counts.sum())
        variance = float((counts * (values - mean) ** 2).sum() / counts.sum())
        means.append(mean)
        # Avoid dividing by zero if all values are equal.
        stds.append(variance**0.5 or 1.0)
    return tuple(means), tuple(stds)
