"""The dataset as a stream, for images that do not fit in memory: row groups of Parquet files, decoded in blocks.

The driver reads the files' metadata and labels, and decodes a few examples. Ray Data's tasks decode the images during
training: see feeds/stream_feed.py.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vgg_ddp.data.columns import BY_NAME, ColumnNames
from vgg_ddp.data.contrast import note_missing_contrast
from vgg_ddp.data.dataset import channel_statistics, name_classes
from vgg_ddp.data.layout import SplitFiles
from vgg_ddp.data.parquet import ParquetImages, decode_images, merge_class_names, open_file, scan_files
from vgg_ddp.data.source import Source
from vgg_ddp.data.validation import split_off_validation
from vgg_ddp.flags import UsageError
from vgg_ddp.run.storage import Folder

# Number of training images that the driver decodes to estimate the channels' mean and standard deviation.
EXAMPLES = 5000
EXAMPLE_BYTES = 2**28
BLOCK_BYTES = 2**24
Batch = dict[str, npt.NDArray[np.generic]]


@dataclass(frozen=True)
class RowGroup:
    """A row group of a Parquet file, or those of its rows that belong to a split.

    Attributes:
        file: file name, without the folder.
        index: index of the row group in its file.
        first_image: index of its first image in the split.
        rows: number of rows that belong to the split.
        chosen: their positions in the row group, in ascending order; None if all do.
    """

    file: str
    index: int
    first_image: int
    rows: int
    chosen: tuple[int, ...] | None = None


@dataclass(frozen=True)
class RowRange:
    """Rows `start` to `stop`, exclusive, among those of a row group that belong to the split."""

    group: RowGroup
    start: int
    stop: int


@dataclass(frozen=True)
class StreamedDataset:
    """All splits, not decoded.

    Attributes:
        name: shown in messages.
        mean: mean of each channel, estimated from some training images, on a scale of 0 to 255.
        std: standard deviation of each channel, estimated in the same way.
        test_name: name of the split that `test_groups` come from; None if no test split has labels.
        columns: the columns that the flags name.
        validation_groups: the rows of the training split's row groups that are left out of training.
    """

    name: str
    folder: Folder
    train_groups: tuple[RowGroup, ...]
    test_groups: tuple[RowGroup, ...]
    image_size: int
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    test_name: str | None = "test"
    columns: ColumnNames = BY_NAME
    validation_groups: tuple[RowGroup, ...] = ()

    @property
    def num_train(self) -> int:
        return sum(group.rows for group in self.train_groups)

    @property
    def num_validation(self) -> int:
        return sum(group.rows for group in self.validation_groups)

    @property
    def num_test(self) -> int:
        return sum(group.rows for group in self.test_groups)


def open_stream(source: Source, image_size: int, validation_fraction: float = 0.0, seed: int = 0) -> StreamedDataset:
    """Scan the metadata and labels of a source's files; leave the validation images out of the training split.

    Raises:
        UsageError: naming the file that is invalid.
    """
    assert source.layout is not None
    folder = source.layout.folder
    train, names = _scan_split(source, source.layout.train)
    test, test_names = _scan_split(source, source.test_split) if source.test_split else ([], None)
    names = merge_class_names({"the training split": names, "the test split": test_names}, source.location)
    highest, num_train = max(int(labels.max()) for _, labels in train), sum(group.rows for group, _ in train)
    names = source.class_names or names or name_classes(highest, num_train, source.location)
    for group, labels in (*train, *test):
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= len(names):
            raise UsageError(
                f"label {low if low < 0 else high} in row group {group.index} of {folder / group.file} is out of "
                f"range: expected 0 to {len(names) - 1}, the classes of the training split."
            )
    train_groups, test_groups = (tuple(group for group, _ in groups) for groups in (train, test))
    validation_groups: tuple[RowGroup, ...] = ()
    if validation_fraction:
        kept, held_out = split_off_validation(
            np.concatenate([labels for _, labels in train]), validation_fraction, seed
        )
        train_groups, validation_groups = choose_rows(train_groups, kept), choose_rows(train_groups, held_out)
    examples = _decode_examples(folder, train_groups, image_size, source.columns)
    note_missing_contrast(examples, source.name)
    mean, std = channel_statistics(examples)
    return StreamedDataset(
        source.name,
        folder,
        train_groups,
        test_groups,
        image_size,
        names,
        mean,
        std,
        source.test_name,
        source.columns,
        validation_groups,
    )


def choose_rows(groups: Sequence[RowGroup], images: npt.NDArray[np.int64]) -> tuple[RowGroup, ...]:
    """The row groups with only these images, indices in ascending order, which are then counted from 0."""
    chosen, first_image = [], 0
    for group in groups:
        start, stop = np.searchsorted(images, (group.first_image, group.first_image + group.rows))
        rows = tuple((images[start:stop] - group.first_image).tolist())
        if rows:
            chosen.append(RowGroup(group.file, group.index, first_image, len(rows), rows))
        first_image += len(rows)
    return tuple(chosen)


def _scan_split(
    source: Source, split: SplitFiles
) -> tuple[list[tuple[RowGroup, npt.NDArray[np.int64]]], tuple[str, ...] | None]:
    """The row groups of a split, each with its labels; the class names, if any."""
    assert source.layout is not None
    found: list[tuple[RowGroup, npt.NDArray[np.int64]]] = []
    first_image = 0
    scans = scan_files(source.layout.folder, split.files, source.columns, _scan_labels)
    for name, (_, groups) in zip(split.files, scans, strict=True):
        for index, labels in enumerate(groups):
            if len(labels):
                found.append((RowGroup(name, index, first_image, len(labels)), labels))
            first_image += len(labels)
    if not found:
        raise UsageError(f"the {split.name} split of {source.location} is empty: expected at least one image.")
    names = {name: names for name, (names, _) in zip(split.files, scans, strict=True)}
    return found, merge_class_names(names, source.location)


def _scan_labels(parquet: ParquetImages) -> tuple[tuple[str, ...] | None, list[npt.NDArray[np.int64]]]:
    """A file's class names, if any, and the labels of each row group."""
    return parquet.class_names(), [parquet.labels(index) for index in range(len(parquet.row_groups))]


def _decode_examples(
    folder: Folder, groups: Sequence[RowGroup], image_size: int, columns: ColumnNames
) -> npt.NDArray[np.uint8]:
    """Decode training images from across the row groups, the same ones in every run.

    Raises:
        UsageError: naming the file and row that is invalid.
    """
    count = max(1, min(EXAMPLES, EXAMPLE_BYTES // (image_size**2 * 3)))
    if len(groups) > count:
        groups = [groups[index * len(groups) // count] for index in range(count)]
    per_group = -(-count // len(groups))
    step = max(1, len(groups) * min(per_group, min(group.rows for group in groups)) // count)
    ranges = [RowRange(group, 0, min(per_group, group.rows)) for group in groups[::step]]
    blocks = [block for rows in ranges for block in decode_rows(folder, rows, image_size, columns)]
    for block in blocks:
        if error := first_error(block):
            raise UsageError(error)
    return np.concatenate([block["image"] for block in blocks])[:count]


def first_error(batch: Batch) -> str | None:
    """The first image of a batch that could not be decoded, as an error message; None if all could be."""
    return next((str(error) for error in batch["error"] if error), None)


def decode_rows(folder: Folder, rows: RowRange, image_size: int, columns: ColumnNames = BY_NAME) -> Iterator[Batch]:
    """Decode part of a row group in blocks of at most 16 MiB.

    Yields:
        Blocks with image, uint8 (n, image_size, image_size, 3); label, int64 (n,); index of each image in the split,
        int64 (n,); error, str (n,): empty, or why an image of this block cannot be decoded. All its images are then
        black.
    """
    group = rows.group
    rows_per_block = max(1, BLOCK_BYTES // (image_size**2 * 3))
    chosen = np.array(group.chosen if group.chosen is not None else range(group.rows))[rows.start : rows.stop]
    with open_file(folder, group.file, columns) as parquet:
        first, done = 0, 0
        for batch in parquet.batches([group.index], rows_per_block):
            count = int(np.searchsorted(chosen[done:], first + len(batch)))
            if count:
                positions = chosen[done : done + count] - first
                part = batch.slice(positions[0], positions[-1] + 1)
                positions -= positions[0]
                error = ""
                try:
                    images = decode_images(parquet, part, image_size, threads=1, chosen=positions.tolist())
                except UsageError as invalid:
                    # Not raised: Ray would retry the task several times and print a page of traceback.
                    images, error = np.zeros((count, image_size, image_size, 3), np.uint8), str(invalid)
                first_image = group.first_image + rows.start + done
                yield {
                    "image": images,
                    "label": part.labels[positions],
                    "index": np.arange(first_image, first_image + count),
                    "error": np.full(count, error),
                }
            first, done = first + len(batch), done + count
            if done == len(chosen):
                return


def select_rows(groups: Sequence[RowGroup], start: int, stop: int) -> list[RowRange]:
    """The rows of images `start` to `stop`, exclusive, counted in the order of the groups."""
    ranges = []
    first = 0
    for group in groups:
        range_start, range_stop = max(start - first, 0), min(stop - first, group.rows)
        if range_start < range_stop:
            ranges.append(RowRange(group, range_start, range_stop))
        first += group.rows
    return ranges
