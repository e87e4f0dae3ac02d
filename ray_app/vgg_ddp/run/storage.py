"""Read and write files on a local disk or at a URI such as s3://bucket/prefix, through pyarrow's filesystems."""

import contextlib
import errno
import os
import posixpath
import re
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field

from pyarrow import fs

from vgg_ddp.compat.pyarrow_s3 import with_patience
from vgg_ddp.run.lease import Lease

# In seconds. pyarrow retries requests to S3, except those that read an object's content.
READ_RETRY_DELAYS = (0.5, 2.0, 5.0)
# The errors of os.link on a filesystem without hard links, such as FAT.
NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)

# The files of a checkpoint, and how many checkpoints a run keeps. Not in checkpoint.py, which imports torch.
STATE_FILE, MANIFEST_FILE = "state.pt", "manifest.json"
KEEP = 2

# On a disk, next to the file that is being written.
TEMPORARY_FILE = re.compile(r".+\.[0-9a-f]{8}\.tmp")


def absolute(location: str) -> str:
    """A local path as an absolute one, with ~ expanded; a URI unchanged."""
    return location if "://" in location else os.path.abspath(os.path.expanduser(location))


def is_checkpoint(name: str) -> bool:
    """Whether a folder of a run is a checkpoint, by its name: checkpoint_<step>_<id>."""
    return bool(re.fullmatch(r"checkpoint_\d{8}_[0-9a-f]{6}", name))


@dataclass(frozen=True)
class Folder:
    """A folder on a filesystem, which may not exist yet.

    Attributes:
        lease: what this process must hold to write to the folder; None if it needs nothing.
    """

    filesystem: fs.FileSystem
    path: str
    lease: Lease | None = field(default=None, compare=False, repr=False)

    @classmethod
    def at(cls, location: str) -> "Folder":
        """The folder at a local path (made absolute) or a URI.

        Raises:
            ValueError: if the URI's scheme is unknown, or needs a package that is not installed.
        """
        if "://" not in location:
            return cls(fs.LocalFileSystem(), absolute(location))
        try:
            filesystem, path = fs.FileSystem.from_uri(location)
        except ImportError as error:
            raise ValueError(str(error)) from error
        if isinstance(filesystem, fs.S3FileSystem):
            filesystem = with_patience(filesystem)
        return cls(filesystem, path.rstrip("/"))

    @property
    def is_local(self) -> bool:
        return isinstance(self.filesystem, fs.LocalFileSystem)

    def __truediv__(self, name: str) -> "Folder":
        return Folder(self.filesystem, posixpath.join(self.path, name), self.lease)

    def __str__(self) -> str:
        return self.path if self.is_local else f"{self.filesystem.type_name}://{self.path}"

    def exists(self, name: str = "") -> bool:
        info = self.filesystem.get_file_info((self / name if name else self).path)
        return bool(info.type != fs.FileType.NotFound)

    def changed_ns(self, name: str) -> int:
        """A file's modification time in nanoseconds since 1970; 0 if the storage does not record it."""
        return self.filesystem.get_file_info((self / name).path).mtime_ns or 0

    def names(self) -> list[str]:
        """Sorted names of the files and folders in this folder; empty if it does not exist."""
        selector = fs.FileSelector(self.path, allow_not_found=True)
        return sorted(info.base_name for info in self.filesystem.get_file_info(selector))

    def read(self, name: str) -> bytes:
        """Content of a file.

        Raises:
            FileNotFoundError: if the file does not exist.
            OSError: if it cannot be read (after retries, for an object store).
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

    @property
    def lost(self) -> str | None:
        """Why this process may not write to the folder anymore; None while it may."""
        return self.lease.lost if self.lease else None

    def require_lease(self) -> None:
        """Make sure that this process may write to the folder now; each method that does so calls it.

        Raises:
            LeaseLostError: if another command writes there.
            OSError: if that cannot be found out.
        """
        if self.lease:
            self.lease.require()

    def write(self, name: str, content: bytes | memoryview) -> None:
        """Write a file atomically: a reader sees either the old or the new content.

        Raises:
            OSError: if the folder cannot be written.
        """
        self.require_lease()
        target = (self / name).path
        if not self.is_local:
            # Object stores show an object only once it is complete.
            with self.filesystem.open_output_stream(target) as stream:
                stream.write(content)
            return
        with self._temporary_file(name, content) as temporary:
            self.require_lease()
            os.replace(temporary, target)

    def create(self, name: str, content: bytes | memoryview) -> None:
        """Write a file that does not exist yet, atomically.

        Raises:
            FileExistsError: if it exists. An object store may not notice one that appears during the upload.
            OSError: if the folder cannot be written.
        """
        target = (self / name).path
        if not self.is_local:
            self._require_missing(name)
            self.write(name, content)
            return
        self.require_lease()
        with self._temporary_file(name, content) as temporary:
            self.require_lease()
            try:
                os.link(temporary, target)
            except OSError as error:
                if error.errno not in NO_HARD_LINKS:
                    raise
                self._require_missing(name)
                os.replace(temporary, target)

    def _require_missing(self, name: str) -> None:
        if self.exists(name):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), (self / name).path)

    @contextlib.contextmanager
    def _temporary_file(self, name: str, content: bytes | memoryview) -> Iterator[str]:
        """The path of a new file with this content, next to the file `name`; deleted afterwards, if it still exists."""
        os.makedirs(self.path, exist_ok=True)
        temporary = f"{(self / name).path}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            yield temporary
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)

    def delete_temporary_files(self) -> None:
        """Delete the files that a crash left while they were being written in this folder."""
        for name in self.names() if self.is_local else ():
            if TEMPORARY_FILE.fullmatch(name):
                self.delete(name)

    def try_to_write(self, marker: str) -> None:
        """Write an empty file of this name, and delete it.

        Raises:
            OSError: if the folder cannot be written.
        """
        if self.is_local:
            # In place: a crash leaves at most the marker, which the next command deletes.
            os.makedirs(self.path, exist_ok=True)
            open((self / marker).path, "wb").close()
        else:
            self.write(marker, b"")
        self.delete(marker)

    def overwrite(self, name: str, content: bytes) -> None:
        """Overwrite a file in place, for readers that keep it open; a crash may leave it truncated.

        Raises:
            OSError: if the folder cannot be written.
        """
        if not self.is_local:
            self.write(name, content)
            return
        self.require_lease()
        os.makedirs(self.path, exist_ok=True)
        with open((self / name).path, "r+b" if self.exists(name) else "wb") as file:
            file.write(content)
            file.truncate()

    def delete(self, name: str) -> None:
        """Delete a file or folder in this folder, if it exists."""
        target = (self / name).path
        kind = self.filesystem.get_file_info(target).type
        self.require_lease()
        with contextlib.suppress(FileNotFoundError):
            if kind == fs.FileType.Directory:
                self.filesystem.delete_dir(target)
            elif kind == fs.FileType.File:
                self.filesystem.delete_file(target)
