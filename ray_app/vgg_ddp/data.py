"""Find, download, verify and decode the images. Runs in the driver only; torch is not needed here.

CIFAR-10: "Learning Multiple Layers of Features from Tiny Images" (Krizhevsky, 2009).
"""

import contextlib
import fcntl
import os
import threading
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from vgg_ddp import torchrun
from vgg_ddp.flags import UsageError
from vgg_ddp.parquet import agree_on_classes, find_files, read_split
from vgg_ddp.storage import absolute

SAMPLE_FOLDER = Path(__file__).resolve().parent.parent / "sample"
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_IMAGES = 60_000
CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
PROBE_SECONDS = 5.0
SplitName = Literal["train", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "test")


@dataclass(frozen=True)
class Split:
    """Decoded images, uint8 (N, H, W, 3), and their labels, int64 (N,)."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """Both splits, decoded.

    Attributes:
        name: what was loaded, for people.
        class_names: one for each label.
        mean: of each channel of the training images, in units of 0..255.
        std: of each channel of the training images, in units of 0..255.
    """

    name: str
    train: Split
    test: Split
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def num_train(self) -> int:
        return len(self.train)

    @property
    def num_test(self) -> int:
        return len(self.test)


@dataclass(frozen=True)
class Source:
    """Where the images come from: CIFAR-10 as torchvision keeps it, or a folder of Parquet files."""

    name: str
    location: str
    kind: Literal["cifar10", "parquet"]
    class_names: tuple[str, ...] | None = None


def find_source(data: str, data_dir: str) -> Source:
    """Decide where the images come from; download CIFAR-10 where it is wanted and not there yet.

    Raises:
        UsageError: if the data is not there and cannot be had.
    """
    sample = Source("bundled CIFAR-10 sample", str(SAMPLE_FOLDER), "parquet", CIFAR10_CLASSES)
    if data == "sample":
        return sample
    if data in ("auto", "cifar10"):
        try:
            return _find_cifar10(data_dir)
        except UsageError as error:
            if data == "cifar10":
                raise
            _say(f"NOTE: {error}\nNOTE: training on the bundled sample of 5,000 + 1,000 images instead.")
            return sample
    location = absolute(data)
    # Looked for here too, so that a wrong path is told at once, not once Ray has started.
    for split in SPLITS:
        find_files(location, split)
    return Source(location, location, "parquet")


def _find_cifar10(data_dir: str) -> Source:
    source = Source("CIFAR-10", absolute(data_dir), "cifar10", CIFAR10_CLASSES)
    lock_file = os.path.join(source.location, ".download.lock")
    if os.path.isdir(os.path.join(source.location, "cifar-10-batches-py")):
        with contextlib.suppress(FileNotFoundError), open(lock_file) as lock:
            # Another process may still be unpacking.
            fcntl.flock(lock, fcntl.LOCK_SH)
        return source
    archive = os.path.join(source.location, os.path.basename(CIFAR10_URL))
    if not os.path.isfile(archive) and not _answers(CIFAR10_URL, PROBE_SECONDS):
        host = CIFAR10_URL.split("/")[2]
        raise UsageError(f"CIFAR-10 is not in --data-dir {source.location} and {host} cannot be reached.")
    from torchvision.datasets import CIFAR10

    _say(f"Downloading CIFAR-10 to {source.location}")
    try:
        os.makedirs(source.location, exist_ok=True)
        with open(lock_file, "w") as lock:
            # torchrun's processes all come here: one downloads, the others then find the images.
            fcntl.flock(lock, fcntl.LOCK_EX)
            CIFAR10(source.location, download=True)
    except (OSError, RuntimeError) as error:
        raise UsageError(f"CIFAR-10 could not be downloaded to --data-dir {source.location}: {error}") from error
    return source


def _say(what: str) -> None:
    """Print something once, not in each of torchrun's processes."""
    if torchrun.is_rank_zero():
        print(what, flush=True)


def _answers(url: str, timeout_seconds: float) -> bool:
    """Whether a URL answers in time. In a thread, since looking up a host name heeds no timeout."""
    answers: list[bool] = []

    def ask() -> None:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=timeout_seconds):
                answers.append(True)
        except OSError:
            answers.append(False)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout_seconds)
    return bool(answers and answers[0])


def load_dataset(source: Source, image_size: int) -> Dataset:
    """Decode both splits to images of `image_size` x `image_size` pixels.

    Raises:
        UsageError: naming the file and the row where something is wrong.
    """
    train, names = load_split(source, "train", image_size)
    test, test_names = load_split(source, "test", image_size)
    names = agree_on_classes({"the training split": names, "the test split": test_names}, source.location)
    names = names or name_classes(int(train.labels.max()), len(train), source.location)
    for split_name, split in (("train", train), ("test", test)):
        bad = np.flatnonzero((split.labels < 0) | (split.labels >= len(names)))
        if len(bad):
            raise UsageError(
                f"label {split.labels[bad[0]]} of image {bad[0]} in the {split_name} split of {source.location} is "
                f"out of range: expected 0 to {len(names) - 1}, the classes of the training split."
            )
    mean, std = channel_statistics(train.images)
    return Dataset(source.name, train, test, names, mean, std)


def name_classes(highest: int, num_images: int, location: str) -> tuple[str, ...]:
    """Numbers as the names of classes that have none.

    Raises:
        UsageError: if the highest label is so high that the labels cannot be meant as 0, 1, 2 and so on.
    """
    if highest >= num_images:
        raise UsageError(
            f"label {highest} in {location} is out of range: with {num_images} training images, expected labels 0, 1, "
            "2 and so on."
        )
    return tuple(str(label) for label in range(highest + 1))


def load_split(source: Source, split: SplitName, image_size: int) -> tuple[Split, tuple[str, ...] | None]:
    """Decode one split; also the class names, where the source has them.

    Raises:
        UsageError: naming the file and the row where something is wrong.
    """
    if source.kind == "cifar10":
        return _load_cifar10(source, split, image_size)
    images, labels, names = read_split(source.location, split, image_size)
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
            f"CIFAR-10 in --data-dir {source.location} is damaged: delete cifar-10-batches-py there to have it "
            "unpacked or downloaded again."
        ) from None
    images = dataset.data
    if image_size != images.shape[1]:
        from PIL import Image

        size = (image_size, image_size)
        resized = (Image.fromarray(image).resize(size, Image.Resampling.BILINEAR) for image in images)
        images = np.stack([np.asarray(image) for image in resized])
    return Split(images, np.asarray(dataset.targets, dtype=np.int64)), CIFAR10_CLASSES


def channel_statistics(images: npt.NDArray[np.uint8]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Exact mean and standard deviation of each channel, from histograms of its 256 values."""
    means, stds = [], []
    values = np.arange(256)
    for channel in range(3):
        counts = np.bincount(images[..., channel].reshape(-1), minlength=256)
        mean = float((counts * values).sum() / counts.sum())
        variance = float((counts * (values - mean) ** 2).sum() / counts.sum())
        means.append(mean)
        # A channel without any contrast is left as it is.
        stds.append(variance**0.5 or 1.0)
    return tuple(means), tuple(stds)
