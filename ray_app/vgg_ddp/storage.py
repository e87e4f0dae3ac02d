"""Files of a run, on a local disk or at a URI such as s3://bucket/prefix, through pyarrow's filesystems."""

import contextlib
import os
import posixpath
import re
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pyarrow import fs

# With growing pauses, these take about 6 s; 100 s where nothing answers.
S3_ATTEMPTS = 10
# In seconds. pyarrow tries requests to S3 again by itself, but not the one that brings an object's content.
READ_RETRY_DELAYS = (0.5, 2.0, 5.0)


def absolute(location: str) -> str:
    """A local path made absolute, ~ resolved; a URI as it is."""
    return location if "://" in location else os.path.abspath(os.path.expanduser(location))


def is_checkpoint(name: str) -> bool:
    """Whether a folder within that of a run holds a checkpoint, by its name: checkpoint_<step>_<id>."""
    return bool(re.fullmatch(r"checkpoint_\d{8}_[0-9a-f]{6}", name))


class PatientS3FileSystem(fs.S3FileSystem):  # type: ignore[misc]
    """pyarrow's, as patient in every process that it is sent to: pyarrow's own comes back with three attempts."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, retry_strategy=fs.AwsDefaultS3RetryStrategy(max_attempts=S3_ATTEMPTS))

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[dict[str, Any]]]:
        return _rebuild, (_options(super()),)


def _options(filesystem: Any) -> dict[str, Any]:
    """Arguments that make a file system like this one; pyarrow tells them only to pickle."""
    _, (options,) = filesystem.__reduce__()
    return dict(options)


def _rebuild(options: dict[str, Any]) -> PatientS3FileSystem:
    return PatientS3FileSystem(**options)


@dataclass(frozen=True)
class Folder:
    """A folder on a filesystem; it need not exist yet."""

    filesystem: fs.FileSystem
    path: str

    @classmethod
    def at(cls, location: str) -> "Folder":
        """The folder at a local path (made absolute) or a URI.

        Raises:
            ValueError: if the URI's scheme is not known, or needs a package that is not there.
        """
        if "://" not in location:
            return cls(fs.LocalFileSystem(), absolute(location))
        try:
            filesystem, path = fs.FileSystem.from_uri(location)
        except ImportError as error:
            raise ValueError(str(error)) from error
        if isinstance(filesystem, fs.S3FileSystem):
            filesystem = PatientS3FileSystem(**_options(filesystem))
        return cls(filesystem, path.rstrip("/"))

    @property
    def is_local(self) -> bool:
        return isinstance(self.filesystem, fs.LocalFileSystem)

    def __truediv__(self, name: str) -> "Folder":
        return Folder(self.filesystem, posixpath.join(self.path, name))

    def __str__(self) -> str:
        return self.path if self.is_local else f"{self.filesystem.type_name}://{self.path}"

    def exists(self, name: str = "") -> bool:
        info = self.filesystem.get_file_info((self / name if name else self).path)
        return bool(info.type != fs.FileType.NotFound)

    def changed_ns(self, name: str) -> int:
        """When a file was last changed, in nanoseconds since 1970; 0 where the storage does not tell."""
        return self.filesystem.get_file_info((self / name).path).mtime_ns or 0

    def names(self) -> list[str]:
        """Names of the files and folders in this folder, sorted; empty where it does not exist."""
        selector = fs.FileSelector(self.path, allow_not_found=True)
        return sorted(info.base_name for info in self.filesystem.get_file_info(selector))

    def read(self, name: str) -> bytes:
        """Content of a file.

        Raises:
            FileNotFoundError: if there is no such file.
            OSError: if it cannot be read; on an object store, after further attempts.
        """
        for delay in () if self.is_local else READ_RETRY_DELAYS:
            try:
                return self._read(name)
            except FileNotFoundError:
                raise
            except OSError:
                time.sleep(delay)
        return self._read(name)

    def _read(self, name: str) -> bytes:
        with self.filesystem.open_input_file((self / name).path) as file:
            return bytes(file.read())

    def write(self, name: str, content: bytes | memoryview) -> None:
        """Write a file so that a reader sees either the whole old or the whole new content.

        Raises:
            OSError: if the folder cannot be written.
        """
        target = (self / name).path
        if not self.is_local:
            # An object store shows an object only once it is complete.
            with self.filesystem.open_output_stream(target) as stream:
                stream.write(content)
            return
        os.makedirs(self.path, exist_ok=True)
        temporary = f"{target}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise

    def overwrite(self, name: str, content: bytes) -> None:
        """Write a file over the one that is there, for a reader that keeps it open; a crash may leave it cut short.

        Raises:
            OSError: if the folder cannot be written.
        """
        if not self.is_local:
            self.write(name, content)
            return
        os.makedirs(self.path, exist_ok=True)
        with open((self / name).path, "r+b" if self.exists(name) else "wb") as file:
            file.write(content)
            file.truncate()

    def delete(self, name: str) -> None:
        """Delete a file or folder below this one; one that is gone already is no error."""
        target = (self / name).path
        kind = self.filesystem.get_file_info(target).type
        with contextlib.suppress(FileNotFoundError):
            if kind == fs.FileType.Directory:
                self.filesystem.delete_dir(target)
            elif kind == fs.FileType.File:
                self.filesystem.delete_file(target)
