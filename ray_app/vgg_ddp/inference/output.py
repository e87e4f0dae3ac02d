"""The Parquet file of --output: it appears when it is complete, and not before."""

import json
import mmap
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from vgg_ddp.flags import UsageError
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
            UsageError: if it exists already, is not named .parquet, or its folder cannot be written.
        """
        if not location.lower().endswith(".parquet"):
            raise UsageError(f"--output {location}: expected the name of a .parquet file.")
        try:
            file = Folder.at(location)
            parent, _, name = file.path.rpartition("/")
            output = cls(location, Folder(file.filesystem, parent or "/"), name)
            if output.folder.exists(name):
                raise UsageError(f"--output {location} exists already: name another file, or delete it.")
            output._try_to_write()
        except UsageError:
            raise
        except (OSError, ValueError) as error:
            raise UsageError(f"--output {location} cannot be written: {error}") from error
        return output

    def _try_to_write(self) -> None:
        marker = f".writable-{self.name}"
        self.folder.write(marker, b"")
        self.folder.delete(marker)

    def write(self, tables: Iterator[pa.Table], class_names: Sequence[str]) -> None:
        """Write all tables, with the class names as metadata; nothing if an exception ends them.

        Raises:
            UsageError: if the file cannot be written.
        """
        # Without a name, so that a killed process leaves nothing.
        with tempfile.TemporaryFile() as file:
            schema = SCHEMA.with_metadata({CLASSES_KEY: json.dumps(class_names)})
            with pq.ParquetWriter(file, schema, compression="zstd") as writer:
                for table in _joined(tables):
                    writer.write_table(table, ROWS_PER_GROUP)
            file.flush()
            try:
                with _mapped(file.fileno()) as content:
                    self.folder.write(self.name, content)
            except OSError as error:
                raise UsageError(f"--output {self.location} cannot be written: {error}") from error


@contextmanager
def _mapped(descriptor: int) -> Iterator[memoryview]:
    with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as content, memoryview(content) as view:
        yield view


def _joined(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in larger tables."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if sum(map(len, waiting)) >= ROWS_PER_GROUP:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)
