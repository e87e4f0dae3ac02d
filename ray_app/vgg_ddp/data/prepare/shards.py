"""Write image files to Parquet files (shards) in several processes; complete shards are skipped."""

import ctypes
import hashlib
import json
import multiprocessing
import signal
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vgg_ddp.data.decode import DECODER_VERSION, as_png_or_jpeg
from vgg_ddp.data.prepare.image_folder import ImageFile, printable
from vgg_ddp.flags import UsageError
from vgg_ddp.run.storage import Folder

SHARD_BYTES = 128 * 2**20
ROWS_PER_GROUP = 1000
PR_SET_PDEATHSIG = 1
# Key of a shard's metadata: a digest of its sources, and the files that could not be decoded.
METADATA_KEY = b"vgg_ddp"
SCHEMA = pa.schema([("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())])


@dataclass(frozen=True)
class Shard:
    """A Parquet file to write: its name and its image files."""

    name: str
    files: list[ImageFile]


@dataclass(frozen=True)
class Settings:
    """Everything besides the image files that determines the content of shards."""

    root: Path
    class_names: tuple[str, ...]
    image_size: int | None


@dataclass(frozen=True)
class Written:
    """A complete shard.

    Attributes:
        images: number of images.
        broken: path and reason of each file that could not be decoded.
        was_skipped: whether an earlier command had already written it.
    """

    name: str
    images: int
    broken: list[tuple[str, str]]
    was_skipped: bool


def plan_shards(split: str, files: Sequence[ImageFile], images_per_shard: int) -> list[Shard]:
    """Divide a split into shards of at most `images_per_shard` images and 128 MiB, but at least one image."""
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
    """Write the missing shards; yield every shard once it is complete.

    Raises:
        OSError: if the output cannot be written.
        UsageError: naming the file that cannot be read.
        BrokenProcessPool: if a process was killed.
    """
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _exit_with_parent) as pool:
        try:
            for future in as_completed([pool.submit(_write_shard, output, shard, settings) for shard in shards]):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _exit_with_parent() -> None:
    """Make this process exit immediately when the command is interrupted or killed."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    library = ctypes.CDLL(None)
    # Linux only: elsewhere, a process first finishes its shard if the command is killed.
    if hasattr(library, "prctl"):
        library.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def delete_outdated(
    folder: Folder, shards: Sequence[Shard], settings: Settings, notes: Mapping[str, dict[str, Any]]
) -> None:
    """Delete the shards that will be written again: if that is interrupted, the rest must not look complete.

    `notes` has the result of `read_note` for each shard that exists.

    Raises:
        OSError: if this fails.
    """
    for shard in shards:
        if shard.name in notes and notes[shard.name]["source"] != _source(shard, settings):
            folder.delete(shard.name)


def _write_shard(output: str, shard: Shard, settings: Settings) -> Written:
    folder, source = Folder.at(output), _source(shard, settings)
    written = read_note(folder, shard.name)
    if written and written["source"] == source:
        return Written(shard.name, written["images"], [tuple(pair) for pair in written["broken"]], was_skipped=True)
    images, labels, broken = [], [], []
    for file in shard.files:
        try:
            content = as_png_or_jpeg(_read(settings.root / file.path), settings.image_size)
        except OSError as error:
            if isinstance(error.__cause__, MemoryError):
                raise UsageError(
                    f"{settings.root / file.path} cannot be decoded in the available memory: use fewer --processes, or "
                    "delete it if it is damaged."
                ) from error
            broken.append((printable(file.path), error.strerror or str(error)))
            continue
        images.append({"bytes": content, "path": printable(file.path)})
        labels.append(file.label)
    note = {"source": source, "images": len(images), "broken": broken}
    features = {"image": {"_type": "Image"}, "label": {"names": settings.class_names, "_type": "ClassLabel"}}
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}), METADATA_KEY: json.dumps(note)}
    table = pa.table({"image": images, "label": labels}, SCHEMA.with_metadata(metadata))
    stream = pa.BufferOutputStream()
    # Images are already compressed.
    pq.write_table(table, stream, row_group_size=ROWS_PER_GROUP, compression="none")
    folder.write(shard.name, memoryview(stream.getvalue()))
    return Written(shard.name, len(images), broken, was_skipped=False)


def _read(path: Path) -> bytes:
    """Read a file.

    Raises:
        OSError: if it is not a regular file.
        UsageError: if reading fails; a later attempt may succeed.
    """
    if not path.is_file():
        # Reading a pipe, for example, would never end.
        raise OSError("not a regular file" if path.exists() else "a broken link")
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from error


def read_note(folder: Folder, name: str) -> dict[str, Any] | None:
    """Our metadata of a shard; None if the shard is missing or was written by something else."""
    try:
        with folder.filesystem.open_input_file((folder / name).path) as file:
            note: dict[str, Any] = json.loads((pq.read_schema(file).metadata or {})[METADATA_KEY])
        return note if "source" in note else None
    except (OSError, KeyError, TypeError, ValueError):
        # ArrowInvalid is a ValueError.
        return None


def _source(shard: Shard, settings: Settings) -> str:
    """Digest of everything that determines a shard's content."""
    files = [(printable(file.path), file.label, file.size_bytes, file.changed_ns) for file in shard.files]
    text = json.dumps([files, settings.class_names, settings.image_size, DECODER_VERSION])
    return hashlib.sha256(text.encode()).hexdigest()
