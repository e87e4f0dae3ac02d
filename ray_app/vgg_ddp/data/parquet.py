"""Read images and labels from Parquet files."""

import json
import os
import posixpath
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, zip_longest
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from vgg_ddp.data.columns import (
    UNLABELED,
    Cells,
    ColumnNames,
    Columns,
    choose_columns,
    choose_image_column,
    image_cells,
    label_values,
)
from vgg_ddp.data.decode import decode_image
from vgg_ddp.data.layout import SplitFiles, partitions
from vgg_ddp.flags import UsageError
from vgg_ddp.machine.limits import usable_cores
from vgg_ddp.run.storage import Folder

PARALLEL_READS = 16
ROWS_PER_BATCH = 1000
# Decoded by a thread at a time.
IMAGES_PER_TASK = 100
# pyarrow cannot return more than 2 GiB of nested binary data at once, and images differ in size.
BYTES_PER_BATCH = 2**28
T = TypeVar("T")


@dataclass(frozen=True)
class Rows:
    """Consecutive rows of a file.

    Attributes:
        first: index of the first row in the file.
        images: the image column.
        labels: int64 (N,).
    """

    first: int
    images: pa.Array
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def slice(self, start: int, stop: int) -> "Rows":
        return Rows(self.first + start, self.images.slice(start, stop - start), self.labels[start:stop])


@dataclass(frozen=True)
class ParquetImages:
    """An open Parquet file of images and labels; `name` is its path in the folder of the data set."""

    folder: Folder
    name: str
    file: pq.ParquetFile
    columns: Columns

    @cached_property
    def row_groups(self) -> list[int]:
        """Number of rows of each row group."""
        metadata = self.file.metadata
        return [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]

    @cached_property
    def first_rows(self) -> list[int]:
        """Index of the first row of each row group, and the number of rows in the file."""
        return [0, *accumulate(self.row_groups)]

    def batches(self, row_groups: Sequence[int], most_rows: int = ROWS_PER_BATCH) -> Iterator[Rows]:
        """The rows of consecutive row groups in batches, because encoded images can be larger than decoded ones."""
        if not row_groups:
            return
        groups = [self.file.metadata.row_group(index) for index in row_groups]
        bytes_each = max(group.total_byte_size / max(1, group.num_rows) for group in groups)
        count = max(1, min(most_rows, int(BYTES_PER_BATCH / max(1.0, bytes_each))))
        first = self.first_rows[row_groups[0]]
        for batch in self.file.iter_batches(count, row_groups=list(row_groups), columns=self.columns.in_file()):
            yield Rows(first, batch.column(self.columns.image), self._labels(batch, first))
            first += len(batch)

    def labels(self, row_group: int) -> npt.NDArray[np.int64]:
        """The labels of a row group."""
        if self.columns.constant_label is not None:
            return np.full(self.row_groups[row_group], self.columns.constant_label, np.int64)
        table = self.file.read_row_group(row_group, columns=[self.columns.label]).combine_chunks()
        first = self.first_rows[row_group]
        return self._labels(table.to_batches()[0], first) if len(table) else np.empty(0, np.int64)

    def _labels(self, batch: pa.RecordBatch, first: int) -> npt.NDArray[np.int64]:
        if self.columns.constant_label is not None:
            return np.full(len(batch), self.columns.constant_label, np.int64)
        return label_values(batch.column(self.columns.label), self.name, first)

    def class_names(self) -> tuple[str, ...] | None:
        """Class names from the metadata that the Hugging Face `datasets` library writes; None if missing."""
        try:
            features = json.loads((self.file.schema_arrow.metadata or {})[b"huggingface"])["info"]["features"]
            names = features[self.columns.label]["names"]
            is_valid = isinstance(names, list) and all(isinstance(name, str) and name for name in names)
            return tuple(names) or None if is_valid else None
        except (KeyError, TypeError, ValueError):
            return None

    def read_linked(self, path: str) -> bytes:
        """Read the image file that a row names: an absolute local path, or a path relative to this Parquet file.

        Raises:
            OSError: if it cannot be read.
        """
        is_absolute = posixpath.isabs(path)
        if is_absolute and not self.folder.is_local:
            raise OSError("it is not in the storage of the data")
        name = path if is_absolute else posixpath.join(posixpath.dirname(self.name), path)
        if self.folder.is_local and self.folder.exists(name) and not os.path.isfile((self.folder / name).path):
            # Reading a pipe, for example, would never end.
            raise OSError("it is not a regular file")
        return self.folder.read(name)


@contextmanager
def open_file(folder: Folder, name: str, wanted: ColumnNames, labeled: bool = True) -> Iterator[ParquetImages]:
    """Open a Parquet file and check its columns. Unless `labeled`, it needs no labels, and all of them are withheld.

    Raises:
        UsageError: naming the file, if its columns are wrong or it cannot be read, even later in the context.
    """
    path = str(folder / name)
    try:
        with folder.filesystem.open_input_file((folder / name).path) as stream:
            file = pq.ParquetFile(stream)
            if labeled:
                columns = choose_columns(file.schema_arrow, wanted, partitions(name), path)
            else:
                columns = Columns(choose_image_column(file.schema_arrow, wanted.image, path), "", UNLABELED)
            yield ParquetImages(folder, name, file, columns)
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read as Parquet: {error}") from error


def scan_files(
    folder: Folder, names: Sequence[str], wanted: ColumnNames, scan: Callable[[ParquetImages], T], labeled: bool = True
) -> list[T]:
    """Call a function on each file, several at a time because S3 is slow to respond; results are in file order.

    Raises:
        UsageError: naming the first invalid file.
    """

    def scan_file(name: str) -> T:
        with open_file(folder, name, wanted, labeled) as parquet:
            return scan(parquet)

    with ThreadPoolExecutor(PARALLEL_READS) as pool:
        return list(pool.map(scan_file, names))


def has_labels(folder: Folder, split: SplitFiles, wanted: ColumnNames) -> bool:
    """Whether a split has a label that is not withheld.

    Raises:
        UsageError: naming the file that cannot be read.
    """
    is_empty = True
    for name in split.files:
        with open_file(folder, name, wanted) as parquet:
            labels = (parquet.labels(row_group) for row_group in range(len(parquet.row_groups)))
            if any((of_group != UNLABELED).any() for of_group in labels):
                return True
            is_empty = is_empty and not sum(parquet.row_groups)
    # That an empty split is not allowed is reported when it is read.
    return is_empty


def read_files(
    folder: Folder, names: Sequence[str], wanted: ColumnNames, image_size: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], tuple[str, ...] | None]:
    """Images (N, image_size, image_size, 3) and labels (N,) of files, and the class names if the files have them.

    Raises:
        UsageError: naming the file and row that is invalid.
    """
    class_names: dict[str, tuple[str, ...] | None] = {}
    images, labels = [np.empty((0, image_size, image_size, 3), np.uint8)], [np.empty(0, np.int64)]
    for name in names:
        with open_file(folder, name, wanted) as parquet:
            class_names[name] = parquet.class_names()
            for rows in parquet.batches(range(len(parquet.row_groups))):
                labels.append(rows.labels)
                images.append(decode_images(parquet, rows, image_size))
    return np.concatenate(images), np.concatenate(labels), merge_class_names(class_names, str(folder))


def merge_class_names(found: Mapping[str, tuple[str, ...] | None], location: str) -> tuple[str, ...] | None:
    """The class names, which must agree in all places; places without names are ignored.

    Raises:
        UsageError: naming two places and the first class name that differs, or a name that occurs twice.
    """
    named = [(place, names) for place, names in found.items() if names]
    for place, names in named[1:]:
        first_place, first_names = named[0]
        for label, (expected, name) in enumerate(zip_longest(first_names, names, fillvalue="missing")):
            if name != expected:
                raise UsageError(
                    f"the class names in {location} differ: label {label} is {expected} in {first_place} but {name} in "
                    f"{place}."
                )
    if not named:
        return None
    place, names = named[0]
    if len(set(names)) < len(names):
        repeated = next(name for name, count in Counter(names).items() if count > 1)
        raise UsageError(f"{place} in {location} has two classes named {repeated}: class names must differ.")
    return names


def decode_images(
    parquet: ParquetImages,
    rows: Rows,
    image_size: int,
    threads: int | None = None,
    chosen: Sequence[int] | None = None,
) -> npt.NDArray[np.uint8]:
    """Decode and resize the images of rows: uint8 (N, image_size, image_size, 3). Uses all cores by default.

    With `chosen`, only the images at these positions among the rows.

    Raises:
        UsageError: naming the row whose image cannot be decoded.
    """
    cells = image_cells(rows.images)
    positions = range(len(rows)) if chosen is None else chosen
    images = np.empty((len(positions), image_size, image_size, 3), dtype=np.uint8)

    def decode(indices: range) -> None:
        for index in indices:
            position = positions[index]
            try:
                images[index] = decode_image(_content(parquet, rows, cells, position), image_size)
            except OSError as error:
                place = f"row {rows.first + position} of {parquet.name}"
                raise UsageError(f"the image in {place} cannot be decoded ({error}).") from error

    threads = threads or usable_cores()
    count = len(positions)
    size = max(1, min(IMAGES_PER_TASK, -(-count // threads)))
    chunks = [range(start, min(start + size, count)) for start in range(0, count, size)]
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(decode, chunks):
            pass
    return images


def _content(parquet: ParquetImages, rows: Rows, cells: Cells, index: int) -> bytes:
    encoded, path = cells.encoded[index], cells.paths[index]
    if encoded is not None or path is None:
        return encoded or b""
    try:
        return parquet.read_linked(path)
    except (OSError, ValueError) as error:
        reason = "it does not exist" if isinstance(error, FileNotFoundError) else str(error)
        raise UsageError(
            f"row {rows.first + index} of {parquet.name} has only the path of an image, {path}, which cannot be read: "
            f"{reason}."
        ) from error


def encoded_images(parquet: ParquetImages, rows: Rows) -> Iterator[bytes | UsageError]:
    """Each row's encoded image, or why the image file that it names cannot be read."""
    cells = image_cells(rows.images)
    for index in range(len(rows)):
        try:
            yield _content(parquet, rows, cells, index)
        except UsageError as error:
            yield error
