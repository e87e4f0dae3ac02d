"""Images that do not fit into memory: which row groups of Parquet files hold them, and how one of these is decoded.

The driver looks at the files' metadata and labels, and decodes some examples; Ray's tasks decode all images while
training goes on.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vgg_ddp.data import Source, SplitName, channel_statistics, name_classes
from vgg_ddp.flags import UsageError
from vgg_ddp.parquet import (
    ParquetImages,
    agree_on_classes,
    class_names,
    decode_images,
    find_files,
    look_at_files,
    open_file,
    read_labels,
)
from vgg_ddp.storage import Folder

# What the driver decodes to learn the channels' mean and standard deviation.
EXAMPLES = 5000
EXAMPLE_BYTES = 2**28
BLOCK_BYTES = 2**24
Batch = dict[str, npt.NDArray[np.generic]]


@dataclass(frozen=True)
class RowGroup:
    """A row group of a Parquet file.

    Attributes:
        first: its first image, counted over all files of the split.
        first_in_file: the same, counted in its file.
    """

    file: str
    index: int
    first: int
    first_in_file: int
    rows: int


@dataclass(frozen=True)
class Piece:
    """A part of a row group: its rows from `start` up to, but not including, `stop`."""

    group: RowGroup
    start: int
    stop: int


@dataclass(frozen=True)
class StreamedDataset:
    """Both splits, where they lie.

    Attributes:
        name: what was found, for people.
        mean: of each channel of some training images, in units of 0..255.
        std: of each channel of the same.
    """

    name: str
    folder: Folder
    train_groups: tuple[RowGroup, ...]
    test_groups: tuple[RowGroup, ...]
    image_size: int
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def num_train(self) -> int:
        return sum(group.rows for group in self.train_groups)

    @property
    def num_test(self) -> int:
        return sum(group.rows for group in self.test_groups)


def open_stream(source: Source, image_size: int) -> StreamedDataset:
    """Find out what the files of a source hold.

    Raises:
        UsageError: naming the file where something is wrong.
    """
    folder, train, names = _look_at(source, "train")
    _, test, test_names = _look_at(source, "test")
    names = agree_on_classes({"the training split": names, "the test split": test_names}, source.location)
    highest, num_train = max(high for _, _, high in train), sum(group.rows for group, _, _ in train)
    names = source.class_names or names or name_classes(highest, num_train, source.location)
    for group, low, high in (*train, *test):
        if low < 0 or high >= len(names):
            raise UsageError(
                f"label {low if low < 0 else high} in row group {group.index} of {folder / group.file} is out of "
                f"range: expected 0 to {len(names) - 1}, the classes of the training split."
            )
    train_groups, test_groups = (tuple(group for group, _, _ in groups) for groups in (train, test))
    mean, std = channel_statistics(_decode_examples(folder, train_groups, image_size))
    return StreamedDataset(source.name, folder, train_groups, test_groups, image_size, names, mean, std)


def _look_at(
    source: Source, split: SplitName
) -> tuple[Folder, list[tuple[RowGroup, int, int]], tuple[str, ...] | None]:
    """The row groups of a split, each with its lowest and highest label, and the class names where there are any."""
    folder, files = find_files(source.location, split)
    found: list[tuple[RowGroup, int, int]] = []
    first = 0
    looks = look_at_files(folder, files, _look_at_labels)
    for name, (_, groups) in zip(files, looks, strict=True):
        first_in_file = 0
        for index, (rows, low, high) in enumerate(groups):
            if rows:
                found.append((RowGroup(name, index, first, first_in_file, rows), low, high))
            first += rows
            first_in_file += rows
    if not found:
        raise UsageError(f"the {split} split of {source.location} is empty: expected at least one image.")
    names = {name: names for name, (names, _) in zip(files, looks, strict=True)}
    return folder, found, agree_on_classes(names, source.location)


def _look_at_labels(parquet: ParquetImages) -> tuple[tuple[str, ...] | None, list[tuple[int, int, int]]]:
    """Class names where a file has them; and of each row group how many rows, and the lowest and highest label."""
    groups = []
    first = 0
    for index in range(parquet.file.num_row_groups):
        table = parquet.file.read_row_group(index, columns=["label"])
        labels = read_labels(table, parquet.name, first)
        groups.append((len(labels), int(labels.min()), int(labels.max())) if len(labels) else (0, 0, 0))
        first += len(labels)
    return class_names(parquet.file.schema_arrow), groups


def _decode_examples(folder: Folder, groups: Sequence[RowGroup], image_size: int) -> npt.NDArray[np.uint8]:
    """Training images from all over the row groups, the same in every run.

    Raises:
        UsageError: naming the file and the row where something is wrong.
    """
    wanted = min(EXAMPLES, EXAMPLE_BYTES // (image_size**2 * 3))
    of_each = -(-wanted // len(groups))
    step = max(1, len(groups) * min(of_each, min(group.rows for group in groups)) // wanted)
    chosen = [Piece(group, 0, min(of_each, group.rows)) for group in groups[::step]]
    blocks = [block for piece in chosen for block in decode_piece(folder, piece, image_size)]
    for block in blocks:
        if error := first_error(block):
            raise UsageError(error)
    return np.concatenate([block["image"] for block in blocks])[:wanted]


def first_error(batch: Batch) -> str | None:
    """What is wrong with the images of a batch; None if nothing is."""
    return next((str(error) for error in batch["error"] if error), None)


def decode_piece(folder: Folder, piece: Piece, image_size: int) -> Iterator[Batch]:
    """Decode a part of a row group, some images at a time.

    Yields:
        image, uint8 (n, image_size, image_size, 3); label, int64 (n,); number, int64 (n,): that of each image, counted
        over all files of the split; and error (n,): empty, or what is wrong in this block, whose images are black then.
    """
    group = piece.group
    rows_of_block = max(1, BLOCK_BYTES // (image_size**2 * 3))
    with open_file(folder, group.file) as parquet:
        row = 0
        batches = parquet.file.iter_batches(rows_of_block, row_groups=[group.index], columns=list(parquet.columns))
        for batch in batches:
            start, stop = max(row, piece.start), min(row + len(batch), piece.stop)
            if start < stop:
                table = parquet.rename(pa.Table.from_batches([batch])).slice(start - row, stop - start)
                first = group.first_in_file + start
                error = ""
                try:
                    images = decode_images(table, group.file, image_size, first, threads=1)
                except UsageError as broken:
                    # Raised here, it would come to the user as a page of Ray's, and only after several attempts.
                    images, error = np.zeros((len(table), image_size, image_size, 3), np.uint8), str(broken)
                yield {
                    "image": images,
                    "label": read_labels(table, group.file, first),
                    "number": np.arange(group.first + start, group.first + stop),
                    "error": np.full(len(table), error),
                }
            row += len(batch)


def cut(groups: Sequence[RowGroup], start: int, stop: int) -> list[Piece]:
    """The pieces that hold the images from `start` up to, but not including, `stop`, counted in the groups' order."""
    pieces = []
    first = 0
    for group in groups:
        begin, end = max(start - first, 0), min(stop - first, group.rows)
        if begin < end:
            pieces.append(Piece(group, begin, end))
        first += group.rows
    return pieces
