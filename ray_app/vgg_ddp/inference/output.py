"""The Parquet file of --output: it appears when it is complete, and not before."""

import errno
import json
import mmap
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from vgg_ddp.flags import UsageError
from vgg_ddp.run.notes import reason
from vgg_ddp.run.storage import Folder

ROWS_PER_GROUP = 10_000
CLASSES_KEY = b"classes"
SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("row", pa.int64()),
        ("class", pa.string()),
        ("probability", pa.float32()),
        ("probabilities", pa.list_(pa.float32())),
        ("error", pa.string()),
    ]
)


@dataclass(frozen=True)
class Output:
    """A file that does not exist yet."""

    location: str
    folder: Folder
    name: str

    @classmethod
    def at(cls, location: str) -> "Output":
        """The file at a path or URI.

        Raises:
            UsageError: if it exists already, is not named .parquet, or its folder cannot be read.
        """
        if not location.lower().endswith(".parquet"):
            raise UsageError(f"--output {location}: expected the name of a .parquet file.")
        try:
            file = Folder.at(location)
            parent, _, name = file.path.rpartition("/")
            output = cls(location, Folder(file.filesystem, parent or "/"), name)
            exists = output.folder.exists(name)
        except (OSError, ValueError) as error:
            raise _cannot_be_written(location, error) from error
        if exists:
            raise _exists(location)
        return output

    def require_writable(self) -> None:
        """Check that its folder can be written, by creating the folder and a file.

        Raises:
            UsageError: if it cannot.
        """
        try:
            self.folder.try_to_write(f".writable-{self.name}")
        except OSError as error:
            raise _cannot_be_written(self.location, error) from error

    def write(self, tables: Iterator[pa.Table], class_names: Sequence[str]) -> None:
        """Write all tables, with the class names as metadata; nothing if an exception ends them.

        Raises:
            UsageError: if the file cannot be written, or exists by then.
        """
        # Without a name, so that a killed process leaves nothing.
        with tempfile.TemporaryFile() as file:
            schema = SCHEMA.with_metadata({CLASSES_KEY: json.dumps(class_names)})
            with pq.ParquetWriter(file, schema, compression="zstd") as writer:
                for table in _join(tables):
                    writer.write_table(table, ROWS_PER_GROUP)
            file.flush()
            try:
                with _map(file.fileno()) as content:
                    self.folder.create(self.name, content)
            except FileExistsError as error:
                raise _exists(self.location) from error
            except OSError as error:
                raise _cannot_be_written(self.location, error) from error


def _exists(location: str) -> UsageError:
    return UsageError(f"--output {location} exists already: name another file, or delete it.")


def _cannot_be_written(location: str, error: OSError | ValueError) -> UsageError:
    # The text of an error of the system names a file that the user does not know.
    text = error.strerror if isinstance(error, OSError) and error.filename else None
    if isinstance(error, FileExistsError):
        text = os.strerror(errno.ENOTDIR)
    return UsageError(f"--output {location} cannot be written: {text or reason(error)}.")


@contextmanager
def _map(descriptor: int) -> Iterator[memoryview]:
    with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as content, memoryview(content) as view:
        yield view


def _join(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Join small tables into larger ones."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if sum(map(len, waiting)) >= ROWS_PER_GROUP:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)
