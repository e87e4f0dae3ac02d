"""Read images and labels from Parquet files in the layout of the Hugging Face `datasets` library."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import zip_longest
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from vgg_ddp.data.decode import decode_image
from vgg_ddp.flags import UsageError
from vgg_ddp.machine.limits import usable_cores
from vgg_ddp.run.storage import Folder

IMAGE_COLUMNS = ("img", "image")
PARALLEL_READS = 16
ROWS_PER_BATCH = 1000
T = TypeVar("T")


def find_files(location: str, split: str) -> tuple[Folder, list[str]]:
    """List the Parquet files of a split in a folder, given as a path or URI.

    Raises:
        UsageError: if the folder does not exist, or has no such files.
    """
    try:
        folder = Folder.at(location)
        names = folder.names()
        exists = bool(names) or folder.exists()
    except (OSError, ValueError) as error:
        raise UsageError(f"--data {location} cannot be read: {error}") from error
    if not exists:
        raise UsageError(f"--data {location} does not exist: expected auto, cifar10, sample, or a folder or URI.")
    files = [name for name in names if fnmatch(name, f"{split}*.parquet")]
    if not files:
        raise UsageError(f"--data {location} has no {split}*.parquet: expected train*.parquet and test*.parquet.")
    return folder, files


def read_split(
    location: str, split: str, image_size: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], tuple[str, ...] | None]:
    """Images (N, image_size, image_size, 3) and labels (N,) of a split, and the class names if the files have them.

    Raises:
        UsageError: naming the file and row that is invalid.
    """
    folder, files = find_files(location, split)
    names: dict[str, tuple[str, ...] | None] = {}
    images, labels = [np.empty((0, image_size, image_size, 3), np.uint8)], [np.empty(0, np.int64)]
    for file in files:
        with open_file(folder, file) as parquet:
            names[file] = read_class_names(parquet.file.schema_arrow)
            row = 0
            # In batches, because encoded images can be much larger than decoded ones.
            for batch in parquet.file.iter_batches(ROWS_PER_BATCH, columns=list(parquet.columns)):
                table = parquet.rename(pa.Table.from_batches([batch]))
                labels.append(read_labels(table, file, row))
                images.append(decode_images(table, file, image_size, row))
                row += len(batch)
    return np.concatenate(images), np.concatenate(labels), merge_class_names(names, location)


@dataclass(frozen=True)
class ParquetImages:
    """An open Parquet file of images and labels.

    Attributes:
        name: file name, without the folder.
        columns: names of the image and label columns.
    """

    name: str
    file: pq.ParquetFile
    columns: tuple[str, str]

    def rename(self, table: pa.Table) -> pa.Table:
        """Select the two columns and name them image and label; keep the metadata, which may have the class names."""
        return (
            table.select(self.columns)
            .rename_columns(["image", "label"])
            .replace_schema_metadata(self.file.schema_arrow.metadata)
        )


@contextmanager
def open_file(folder: Folder, name: str) -> Iterator[ParquetImages]:
    """Open a Parquet file and check its columns.

    Raises:
        UsageError: naming the file, if its columns are wrong or it cannot be read, even later in the context.
    """
    try:
        with folder.filesystem.open_input_file((folder / name).path) as stream:
            file = pq.ParquetFile(stream)
            yield ParquetImages(name, file, (_check_columns(file.schema_arrow, str(folder / name)), "label"))
    except (OSError, pa.ArrowInvalid) as error:
        raise UsageError(f"{folder / name} cannot be read as Parquet: {error}") from error


def scan_files(folder: Folder, names: Sequence[str], scan: Callable[[ParquetImages], T]) -> list[T]:
    """Call a function on each file, several at a time because S3 is slow to respond; results are in file order.

    Raises:
        UsageError: naming the first invalid file.
    """

    def scan_file(name: str) -> T:
        with open_file(folder, name) as parquet:
            return scan(parquet)

    with ThreadPoolExecutor(PARALLEL_READS) as pool:
        return list(pool.map(scan_file, names))


def _check_columns(schema: pa.Schema, file: str) -> str:
    """Check names and types of the columns; return the name of the image column."""
    image = next((name for name in IMAGE_COLUMNS if name in schema.names), None)
    if image is None or "label" not in schema.names:
        raise UsageError(f"{file} has columns {', '.join(schema.names)}: expected image (or img) and label.")
    if not pa.types.is_integer(schema.field("label").type):
        raise UsageError(f"column label of {file} has type {schema.field('label').type}: expected integers.")
    kind = schema.field(image).type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise UsageError(f"column {image} of {file} has type {kind}: expected binary, or a struct with a field bytes.")
    return image


def read_class_names(schema: pa.Schema) -> tuple[str, ...] | None:
    """Class names from the metadata that the Hugging Face `datasets` library writes; None if missing."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(str(name) for name in features["label"]["names"]) or None
    except (KeyError, TypeError, ValueError):
        return None


def merge_class_names(found: Mapping[str, tuple[str, ...] | None], location: str) -> tuple[str, ...] | None:
    """The class names, which must agree in all places; places without names are ignored.

    Raises:
        UsageError: naming two places and the first class name that differs.
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
    return named[0][1] if named else None


def read_labels(table: pa.Table, file: str, first_row: int = 0) -> npt.NDArray[np.int64]:
    """The labels of a table, int64 (N,); `first_row` is the table's first row in the file.

    Raises:
        UsageError: naming the row that has no label.
    """
    column = table.column("label")
    if column.null_count:
        row = first_row + column.is_null().to_numpy().argmax()
        raise UsageError(f"row {row} of {file} has no label: expected an integer.")
    return column.to_numpy().astype(np.int64)  # type: ignore[no-any-return]


def _image_bytes(table: pa.Table) -> list[bytes | None]:
    column = table.column("image").combine_chunks()
    if pa.types.is_struct(column.type):
        column = column.field("bytes")
    return column.to_pylist()  # type: ignore[no-any-return]


def decode_images(
    table: pa.Table, file: str, image_size: int, first_row: int = 0, threads: int | None = None
) -> npt.NDArray[np.uint8]:
    """Decode and resize the images of a table: uint8 (N, image_size, image_size, 3). Uses all cores by default.

    Raises:
        UsageError: naming the row whose image cannot be decoded.
    """
    encoded = _image_bytes(table)
    images = np.empty((len(encoded), image_size, image_size, 3), dtype=np.uint8)

    def decode_rows(rows: range) -> None:
        for row in rows:
            try:
                images[row] = decode_image(encoded[row] or b"", image_size)
            except OSError as error:
                raise UsageError(
                    f"the image in row {first_row + row} of {file} cannot be decoded ({error}): expected PNG or JPEG."
                ) from error

    chunks = [range(start, min(start + 100, len(encoded))) for start in range(0, len(encoded), 100)]
    with ThreadPoolExecutor(threads or usable_cores()) as pool:
        for _ in pool.map(decode_rows, chunks):
            pass
    return images
