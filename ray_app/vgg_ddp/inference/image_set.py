"""Find the images that --images names: the files of a folder, or the rows of Parquet files."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pyarrow import fs

from vgg_ddp.data.columns import ColumnNames
from vgg_ddp.data.names import first_names
from vgg_ddp.data.parquet import ParquetImages, scan_files
from vgg_ddp.data.prepare.listing import SYSTEM_FILES, Listing
from vgg_ddp.flags import UsageError
from vgg_ddp.run.storage import Folder

# The maximum to decode at a time.
CHUNK_IMAGES, CHUNK_BYTES = 250, 2**24
# Each chunk of a row group reads the rows before it, too.
MAX_CHUNKS_PER_ROW_GROUP = 16
PARQUET = ".parquet"


@dataclass(frozen=True)
class FileChunk:
    """Image files, by their paths in the folder."""

    files: tuple[str, ...]


@dataclass(frozen=True)
class RowChunk:
    """Rows `start` to `stop`, exclusive, of a row group of a Parquet file."""

    file: str
    row_group: int
    start: int
    stop: int


Chunk = FileChunk | RowChunk


@dataclass(frozen=True)
class ImageSet:
    """Images in the order of the output.

    Attributes:
        folder: what the paths in the chunks are relative to.
        columns: the image column that the flags name.
        chunks: the images in parts, each for one task.
        name: shown in messages.
        notes: what was left out, one line each.
    """

    folder: Folder
    columns: ColumnNames
    chunks: list[Chunk]
    count: int
    name: str
    notes: tuple[str, ...] = ()


def find_images(location: str, columns: ColumnNames, image_size: int) -> ImageSet:
    """Find the images at a path or URI: a Parquet file, or a folder of Parquet files or images, searched recursively.

    Raises:
        UsageError: if there are none, or the location or a Parquet file cannot be read.
    """
    listing = Listing()
    try:
        folder, names = _list_files(location, listing)
    except UsageError:
        raise
    except (OSError, ValueError) as error:
        raise UsageError(f"--images {location} cannot be read: {error}") from error
    parquet = [name for name in names if name.lower().endswith(PARQUET)]
    if not names:
        raise UsageError(f"--images {location} is empty: expected images or Parquet files.")
    if not parquet:
        if columns.image:
            raise UsageError(f"--image-column {columns.image}: --images {location} has no Parquet files.")
        return replace(_of_files(folder, names, image_size, location), notes=tuple(listing.notes()))
    if len(parquet) < len(names):
        other = next(name for name in names if name not in set(parquet))
        raise UsageError(
            f"--images {location} has Parquet files, such as {parquet[0]}, and others, such as {other}: expected only "
            "Parquet files, or none."
        )
    return _of_rows(folder, parquet, columns, image_size, location)


def _list_files(location: str, listing: Listing) -> tuple[Folder, list[str]]:
    """The folder, and the sorted paths in it of all files; the location itself if it is a Parquet file."""
    folder = Folder.at(location)
    kind = folder.filesystem.get_file_info(folder.path).type
    if kind == fs.FileType.NotFound:
        raise UsageError(f"--images {location} does not exist: expected a folder of images, or Parquet files.")
    if kind != fs.FileType.Directory:
        if not location.lower().endswith(PARQUET):
            raise UsageError(
                f"--images {location} is neither a folder nor a .parquet file; to classify single images, name them "
                "without --images."
            )
        parent, _, name = folder.path.rpartition("/")
        return Folder(folder.filesystem, parent or "/"), [name]
    return folder, sorted(_files_in(folder, listing))


def _files_in(folder: Folder, listing: Listing) -> Iterator[str]:
    """The paths of all files in a folder and below, without hidden files and those of systems."""
    if folder.is_local:
        root = Path(folder.path)
        yield from (path.relative_to(root).as_posix() for path in listing.files(root))
        return
    for info in folder.filesystem.get_file_info(fs.FileSelector(folder.path, recursive=True)):
        name = info.path.removeprefix(folder.path).lstrip("/")
        is_hidden = any(part.startswith(".") for part in name.split("/")) or info.base_name.lower() in SYSTEM_FILES
        if info.type == fs.FileType.File and not is_hidden:
            yield name


def images_per_chunk(image_size: int) -> int:
    """The maximum number of images to hold decoded at a time."""
    return max(1, min(CHUNK_IMAGES, CHUNK_BYTES // (image_size**2 * 3)))


def _of_files(folder: Folder, names: Sequence[str], image_size: int, location: str) -> ImageSet:
    size = images_per_chunk(image_size)
    chunks: list[Chunk] = [FileChunk(tuple(names[start : start + size])) for start in range(0, len(names), size)]
    return ImageSet(folder, ColumnNames(), chunks, len(names), f"files in {location}")


def _of_rows(folder: Folder, names: Sequence[str], columns: ColumnNames, image_size: int, location: str) -> ImageSet:
    chunks: list[Chunk] = []
    count = 0
    scans: list[list[int]] = scan_files(folder, names, columns, _row_groups, labeled=False)
    for name, row_groups in zip(names, scans, strict=True):
        for index, rows in enumerate(row_groups):
            size = max(images_per_chunk(image_size), -(-rows // MAX_CHUNKS_PER_ROW_GROUP))
            chunks += [RowChunk(name, index, start, min(start + size, rows)) for start in range(0, rows, size)]
            count += rows
    if not count:
        raise UsageError(f"--images {location} has no rows in {first_names(names)}.")
    return ImageSet(folder, columns, chunks, count, f"rows in {location}")


def _row_groups(parquet: ParquetImages) -> list[int]:
    return parquet.row_groups
