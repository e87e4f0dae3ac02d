"""Parquet files from image files, by several processes; files that are complete are not made again."""

import ctypes
import hashlib
import json
import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vgg_ddp.flags import UsageError
from vgg_ddp.image_folder import ImageFile, printable
from vgg_ddp.images import as_png_or_jpeg
from vgg_ddp.storage import Folder

SHARD_BYTES = 128 * 2**20
ROWS_PER_GROUP = 1000
PR_SET_PDEATHSIG = 1
# In a file's metadata: what it was made from, and which of the files were broken.
METADATA_KEY = b"vgg_ddp"
SCHEMA = pa.schema([("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())])


@dataclass(frozen=True)
class Shard:
    """One Parquet file to be: its name, and the image files that it is made from."""

    name: str
    files: list[ImageFile]


@dataclass(frozen=True)
class Settings:
    """What decides the content of a shard, apart from its files."""

    root: Path
    class_names: tuple[str, ...]
    image_size: int | None


@dataclass(frozen=True)
class Written:
    """A complete shard.

    Attributes:
        images: in it.
        broken: path and reason of each file that is no image.
        was_there: whether an earlier command had written it.
    """

    name: str
    images: int
    broken: list[tuple[str, str]]
    was_there: bool


def plan_shards(split: str, files: Sequence[ImageFile], images_per_shard: int) -> list[Shard]:
    """Cut a split into shards of at most so many images, and at most 128 MB of files where there are several."""
    parts: list[list[ImageFile]] = [[]]
    size_bytes = 0
    for file in files:
        if parts[-1] and (len(parts[-1]) == images_per_shard or size_bytes + file.size_bytes > SHARD_BYTES):
            parts.append([])
            size_bytes = 0
        parts[-1].append(file)
        size_bytes += file.size_bytes
    return [Shard(f"{split}-{i:05}-of-{len(parts):05}.parquet", part) for i, part in enumerate(parts)]


def write_shards(output: str, shards: Sequence[Shard], settings: Settings, processes: int) -> Iterator[Written]:
    """Write the shards that are not there yet; gives each as it is complete.

    Raises:
        OSError: if the output cannot be written.
        UsageError: naming the file that cannot be read.
        BrokenProcessPool: if one of the processes was killed.
    """
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _end_with_the_command) as pool:
        try:
            for future in as_completed([pool.submit(_complete, output, shard, settings) for shard in shards]):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _end_with_the_command() -> None:
    """Have this process end at once when the command is interrupted or killed."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    library = ctypes.CDLL(None)
    # Of Linux alone: elsewhere, a process ends after its shard if the command was killed.
    if hasattr(library, "prctl"):
        library.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _complete(output: str, shard: Shard, settings: Settings) -> Written:
    folder, source = Folder.at(output), _source(shard, settings)
    there = _read_note(folder, shard.name)
    if there and there["source"] == source:
        return Written(shard.name, there["images"], [tuple(pair) for pair in there["broken"]], was_there=True)
    images, labels, broken = [], [], []
    for file in shard.files:
        try:
            content = as_png_or_jpeg(_read(settings.root / file.path), settings.image_size)
        except OSError as error:
            broken.append((printable(file.path), error.strerror or str(error)))
            continue
        images.append({"bytes": content, "path": printable(file.path)})
        labels.append(file.label)
    note = {"source": source, "images": len(images), "broken": broken}
    features = {"image": {"_type": "Image"}, "label": {"names": settings.class_names, "_type": "ClassLabel"}}
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}), METADATA_KEY: json.dumps(note)}
    table = pa.table({"image": images, "label": labels}, SCHEMA.with_metadata(metadata))
    stream = pa.BufferOutputStream()
    # The images are compressed already.
    pq.write_table(table, stream, row_group_size=ROWS_PER_GROUP, compression="none")
    folder.write(shard.name, memoryview(stream.getvalue()))
    return Written(shard.name, len(images), broken, was_there=False)


def _read(path: Path) -> bytes:
    """Content of a file.

    Raises:
        OSError: if it is no file.
        UsageError: if it is one, but cannot be read: another time it may be.
    """
    if not path.is_file():
        # A pipe, for example, would never end.
        raise OSError("no regular file" if path.exists() else "a link to nothing")
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from error


def _read_note(folder: Folder, name: str) -> dict[str, Any] | None:
    """What a shard's metadata says of it; None if it is not there, or not ours."""
    try:
        with folder.filesystem.open_input_file((folder / name).path) as file:
            note: dict[str, Any] = json.loads((pq.read_schema(file).metadata or {})[METADATA_KEY])
    except (FileNotFoundError, KeyError, pa.ArrowInvalid):
        return None
    return note


def _source(shard: Shard, settings: Settings) -> str:
    """Digest of all that decides a shard's content."""
    files = [(printable(file.path), file.label, file.size_bytes, file.changed_ns) for file in shard.files]
    text = json.dumps([files, settings.class_names, settings.image_size])
    return hashlib.sha256(text.encode()).hexdigest()
