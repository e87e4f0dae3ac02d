"""Turn --data into a source of images: CIFAR-10 on disk or downloaded, the bundled sample, or Parquet files.

CIFAR-10: "Learning Multiple Layers of Features from Tiny Images" (Krizhevsky, 2009).
"""

import contextlib
import fcntl
import os
import threading
import urllib.request
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from vgg_ddp.config import DATA_NAMES
from vgg_ddp.data.columns import BY_NAME, ColumnNames
from vgg_ddp.data.layout import Layout, SplitFiles, find_layout, require_all_shards
from vgg_ddp.data.parquet import has_labels
from vgg_ddp.flags import UsageError
from vgg_ddp.machine import torchrun
from vgg_ddp.run.storage import absolute

SAMPLE_FOLDER = Path(__file__).resolve().parents[2] / "sample"
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_IMAGES = 60_000
CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
PROBE_SECONDS = 5.0
SplitName = Literal["train", "test"]


@dataclass(frozen=True)
class Source:
    """CIFAR-10 in torchvision's layout, or a folder of Parquet files.

    Attributes:
        name: shown in messages.
        location: path or URI of the folder.
        class_names: None if they must be read from the files.
        layout: the Parquet files of each split; None for CIFAR-10.
        columns: the columns that the flags name.
    """

    name: str
    location: str
    class_names: tuple[str, ...] | None = None
    layout: Layout | None = None
    columns: ColumnNames = BY_NAME

    @property
    def kind(self) -> Literal["cifar10", "parquet"]:
        return "parquet" if self.layout else "cifar10"

    @cached_property
    def test_split(self) -> SplitFiles | None:
        """The first test split that has labels; None if the labels of all are withheld, and for CIFAR-10.

        Raises:
            UsageError: if a file cannot be read, or is missing.
        """
        if self.layout is None:
            return None
        folder = self.layout.folder
        split = next((split for split in self.layout.tests if has_labels(folder, split, self.columns)), None)
        if split:
            require_all_shards(self.location, split.files)
        return split

    @property
    def test_name(self) -> str | None:
        """Name of the split to test on; None if no test split has labels."""
        if self.layout is None:
            return "test"
        return self.test_split.name if self.test_split else None


def find_source(data: str, data_dir: str, columns: ColumnNames = BY_NAME) -> Source:
    """Find the data that --data selects; download CIFAR-10 if needed.

    `columns` are those that --image-column and --label-column name.

    Raises:
        UsageError: if the data does not exist, or cannot be downloaded.
    """
    if data in DATA_NAMES and columns != BY_NAME:
        raise UsageError(
            f"--data {data}: --image-column and --label-column apply only to a folder or URI of Parquet files."
        )
    if data == "sample":
        return _sample()
    if data in ("auto", "cifar10"):
        try:
            return _find_cifar10(data_dir)
        except UsageError as error:
            if data == "cifar10":
                raise
            _print_once(f"NOTE: {error}\nNOTE: training on the bundled sample of 5,000 + 1,000 images instead.")
            return _sample()
    location = absolute(data)
    # Listed here, so that a wrong path or a missing file is reported before Ray starts.
    layout = find_layout(location)
    if layout.ignored:
        _print_once(
            f"NOTE: ignoring {', '.join(layout.ignored)} in {location}: expected a name such as train-0.parquet."
        )
    return Source(location, location, layout=layout, columns=columns)


def _sample() -> Source:
    location = str(SAMPLE_FOLDER)
    if not SAMPLE_FOLDER.is_dir():
        raise UsageError(
            f"--data sample: {location} does not exist, since Ray ships only vgg_ddp to other processes; use a path or "
            "URI instead."
        )
    return Source("bundled CIFAR-10 sample", location, CIFAR10_CLASSES, find_layout(location))


def _find_cifar10(data_dir: str) -> Source:
    source = Source("CIFAR-10", absolute(data_dir), CIFAR10_CLASSES)
    lock_file = os.path.join(source.location, ".download.lock")
    if os.path.isdir(os.path.join(source.location, "cifar-10-batches-py")):
        with contextlib.suppress(FileNotFoundError), open(lock_file) as lock:
            # Wait for another process that may still be unpacking.
            fcntl.flock(lock, fcntl.LOCK_SH)
        return source
    archive = os.path.join(source.location, os.path.basename(CIFAR10_URL))
    if not os.path.isfile(archive) and not _is_reachable(CIFAR10_URL, PROBE_SECONDS):
        host = CIFAR10_URL.split("/")[2]
        raise UsageError(f"CIFAR-10 is not in --data-dir {source.location} and {host} cannot be reached.")
    from torchvision.datasets import CIFAR10

    _print_once(f"Downloading CIFAR-10 to {source.location}")
    try:
        os.makedirs(source.location, exist_ok=True)
        with open(lock_file, "w") as lock:
            # All of torchrun's processes get here: one downloads, the others wait and find the images.
            fcntl.flock(lock, fcntl.LOCK_EX)
            CIFAR10(source.location, download=True)
    except (OSError, RuntimeError) as error:
        raise UsageError(f"CIFAR-10 could not be downloaded to --data-dir {source.location}: {error}") from error
    return source


def _print_once(text: str) -> None:
    """Print from one of torchrun's processes only."""
    if torchrun.is_rank_zero():
        print(text, flush=True)


def _is_reachable(url: str, timeout_seconds: float) -> bool:
    """Whether a URL responds in time. Uses a thread, because name resolution ignores the timeout."""
    responses: list[bool] = []

    def request() -> None:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=timeout_seconds):
                responses.append(True)
        except OSError:
            responses.append(False)

    thread = threading.Thread(target=request, daemon=True)
    thread.start()
    thread.join(timeout_seconds)
    return bool(responses and responses[0])
