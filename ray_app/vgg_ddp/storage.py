"""Files of a run, on a local disk or at a URI such as s3://bucket/prefix, through pyarrow's filesystems."""

import contextlib
import os
import posixpath
import uuid
from dataclasses import dataclass

from pyarrow import fs


def absolute(location: str) -> str:
    """A local path made absolute, ~ resolved; a URI as it is."""
    return location if "://" in location else os.path.abspath(os.path.expanduser(location))


@dataclass(frozen=True)
class Folder:
    """A folder on a filesystem; it need not exist yet."""

    filesystem: fs.FileSystem
    path: str

    @classmethod
    def at(cls, location: str) -> "Folder":
        """The folder at a local path (made absolute) or a URI.

        Raises:
            ValueError: if the URI's scheme is not known.
        """
        if "://" not in location:
            return cls(fs.LocalFileSystem(), absolute(location))
        filesystem, path = fs.FileSystem.from_uri(location)
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

    def names(self) -> list[str]:
        """Names of the files and folders in this folder, sorted; empty where it does not exist."""
        selector = fs.FileSelector(self.path, allow_not_found=True)
        return sorted(info.base_name for info in self.filesystem.get_file_info(selector))

    def read(self, name: str) -> bytes:
        """Content of a file.

        Raises:
            FileNotFoundError: if there is no such file.
        """
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

    def delete(self, name: str) -> None:
        """Delete a file or folder below this one; one that is gone already is no error."""
        target = (self / name).path
        kind = self.filesystem.get_file_info(target).type
        with contextlib.suppress(FileNotFoundError):
            if kind == fs.FileType.Directory:
                self.filesystem.delete_dir(target)
            elif kind == fs.FileType.File:
                self.filesystem.delete_file(target)
