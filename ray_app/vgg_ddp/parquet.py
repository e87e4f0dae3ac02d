"""Images and labels from Parquet files in the layout of the Hugging Face `datasets` library."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from vgg_ddp.flags import UsageError
from vgg_ddp.images import decode_image
from vgg_ddp.storage import Folder

IMAGE_COLUMNS = ("img", "image")


def find_files(location: str, split: str) -> tuple[Folder, list[str]]:
    """The folder at a path or URI, and the names of a split's files in it.

    Raises:
        UsageError: if there is no such folder, or no such file in it.
    """
    try:
        folder = Folder.at(location)
        names = folder.names()
        exists = bool(names) or folder.exists()
    except (OSError, ValueError) as error:
        raise UsageError(f"--data {location} cannot be read: {error}") from error
    if not exists:
        raise UsageError(f"--data {location} does not exist: give auto, cifar10, sample, or a folder or URI.")
    files = [name for name in names if fnmatch(name, f"{split}*.parquet")]
    if not files:
        raise UsageError(f"--data {location} has no {split}*.parquet: expected train*.parquet and test*.parquet.")
    return folder, files


def read_split(
    location: str, split: str, image_size: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], tuple[str, ...] | None]:
    """Images (N, image_size, image_size, 3) and labels (N,) of a split, and the class names where the files hold them.

    Raises:
        UsageError: naming the file and the row where something is wrong.
    """
    folder, files = find_files(location, split)
    names: tuple[str, ...] | None = None
    images, labels = [], []
    for file in files:
        table = _read_table(folder, file)
        names = names or _class_names(table.schema)
        labels.append(_labels(table, file))
        images.append(_decode(_image_bytes(table), file, image_size))
    return np.concatenate(images), np.concatenate(labels), names


def _read_table(folder: Folder, file: str) -> pa.Table:
    try:
        with folder.filesystem.open_input_file((folder / file).path) as stream:
            parquet = pq.ParquetFile(stream)
            columns = parquet.schema_arrow.names
            image = next((name for name in IMAGE_COLUMNS if name in columns), None)
            if image is None or "label" not in columns:
                raise UsageError(
                    f"{folder / file} has the columns {', '.join(columns)}: expected img or image, and label."
                )
            table = parquet.read(columns=[image, "label"])
    except (OSError, pa.ArrowInvalid) as error:
        raise UsageError(f"{folder / file} cannot be read as Parquet: {error}") from error
    metadata = table.schema.metadata
    # Renaming drops the metadata, which may hold the class names.
    table = table.rename_columns(["image", "label"]).replace_schema_metadata(metadata)
    if not pa.types.is_integer(table.schema.field("label").type):
        raise UsageError(f"column label of {folder / file} is {table.schema.field('label').type}: expected integers.")
    kind = table.schema.field("image").type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise UsageError(f"column {image} of {folder / file} is {kind}: expected binary, or a struct with bytes.")
    return table


def _class_names(schema: pa.Schema) -> tuple[str, ...] | None:
    """Class names from the metadata that the Hugging Face `datasets` library writes, where there are any."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(str(name) for name in features["label"]["names"]) or None
    except (KeyError, TypeError, ValueError):
        return None


def _labels(table: pa.Table, file: str) -> npt.NDArray[np.int64]:
    column = table.column("label")
    if column.null_count:
        row = column.is_null().to_numpy().argmax()
        raise UsageError(f"row {row} of {file} has no label: expected an integer.")
    return column.to_numpy().astype(np.int64)  # type: ignore[no-any-return]


def _image_bytes(table: pa.Table) -> list[bytes | None]:
    column = table.column("image").combine_chunks()
    if pa.types.is_struct(column.type):
        column = column.field("bytes")
    return column.to_pylist()  # type: ignore[no-any-return]


def _decode(encoded: list[bytes | None], file: str, image_size: int) -> npt.NDArray[np.uint8]:
    """Decode and resize images on all cores: uint8 (N, image_size, image_size, 3)."""
    images = np.empty((len(encoded), image_size, image_size, 3), dtype=np.uint8)

    def decode_rows(rows: range) -> None:
        for row in rows:
            try:
                images[row] = decode_image(encoded[row] or b"", image_size)
            except OSError as error:
                raise UsageError(
                    f"row {row} of {file} holds a broken image ({error}): expected PNG or JPEG bytes."
                ) from error

    chunk = 1000
    chunks = [range(start, min(start + chunk, len(encoded))) for start in range(0, len(encoded), chunk)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(decode_rows, chunks):
            pass
    return images
