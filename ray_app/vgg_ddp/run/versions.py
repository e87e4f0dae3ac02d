"""Replace a file on a network file system only if nobody else has: the interface of `conditional.py`, by hard links.

Each version of the file is a file of its own, named by its number. A hard link is atomic, also on NFS, and fails if the
name exists, whatever this machine has cached. So of several processes, only one can create the next version.
"""

import errno
import os
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vgg_ddp.run.conditional import ConflictError, UnsupportedError
from vgg_ddp.run.storage import NO_HARD_LINKS

ATTEMPTS = 5
# Older versions are deleted. NFS may show a list of files that is a minute old, in which a lease gets 8 versions.
KEEP = 8


@dataclass
class VersionedFile:
    """A folder of numbered versions of a file. The highest is its content, and the number its ETag."""

    path: str

    def read(self) -> tuple[bytes, str] | None:
        """Content and number of the newest version; None if there is none.

        Raises:
            OSError: if it cannot be read.
        """
        for _ in range(ATTEMPTS):
            number = max(self._numbers(), default=None)
            if number is None:
                return None
            try:
                return Path(self._file(number)).read_bytes(), str(number)
            except OSError as error:
                # There are newer ones: another process has deleted it.
                if error.errno not in (errno.ENOENT, errno.ESTALE):
                    raise
        raise OSError(f"{self.path} keeps changing")

    def replace(self, content: bytes, etag: str | None) -> str:
        """Create the version after this one, or the first one (None); return its number.

        Raises:
            ConflictError: if there is a newer version already, or that one was deleted.
            OSError: if it cannot be written.
            UnsupportedError: if the file system has no hard links.
        """
        known = [int(etag)] if etag else []
        number = max(known, default=0) + 1
        if not known:
            os.makedirs(self.path, exist_ok=True)
        temporary = self._file(f"{number}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            Path(temporary).write_bytes(content)
            self._link(temporary, number)
        except FileNotFoundError:
            # The folder was deleted; or, while this process was frozen, its temporary file was, with old versions.
            raise ConflictError from None
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
        # This process has changed the folder, so its machine does not use an old list of files now.
        numbers = self._numbers()
        if not {*known, number} <= {*numbers} or max(numbers) >= number + KEEP:
            # This process was frozen, or its list of files was old: versions have come and gone, perhaps one of this
            # number.
            with suppress(FileNotFoundError):
                os.unlink(self._file(number))
            raise ConflictError
        self._delete_up_to(number - KEEP)
        return str(number)

    def require_conditions(self) -> None:
        """Check that a hard link fails if the name exists, once there is a version.

        Raises:
            UnsupportedError: if it does not.
            OSError: if that cannot be found out.
        """
        newest = self._file(max(self._numbers()))
        with suppress(FileExistsError):
            os.link(newest, newest)
            raise UnsupportedError("the hard links of its file system replace files")

    def _link(self, temporary: str, number: int) -> None:
        try:
            os.link(temporary, self._file(number))
        except FileExistsError:
            # NFS repeats a request whose answer is lost, and then reports the file that the first one created.
            if os.stat(temporary).st_nlink != 2:
                raise ConflictError from None
        except OSError as error:
            if error.errno in NO_HARD_LINKS:
                raise UnsupportedError("its file system does not support hard links") from error
            raise

    def _delete_up_to(self, last: int) -> None:
        for name in os.listdir(self.path):
            number = name.partition(".")[0]
            if number.isdecimal() and int(number) <= last:
                # Nothing depends on it.
                with suppress(OSError):
                    os.unlink(self._file(name))

    def _numbers(self) -> list[int]:
        with suppress(FileNotFoundError):
            return [int(name) for name in os.listdir(self.path) if name.isdecimal()]
        return []

    def _file(self, name: str | int) -> str:
        return os.path.join(self.path, str(name))
