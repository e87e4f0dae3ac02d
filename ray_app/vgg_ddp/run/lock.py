"""Lock a run, so that only one command uses it."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO

from vgg_ddp.flags import UsageError
from vgg_ddp.machine import torchrun
from vgg_ddp.run.runs import Run
from vgg_ddp.run.storage import Folder


def lock_file(run: Run) -> str | None:
    """The file that a command locks while it uses a run; None if the run folder is not on a disk.

    It has two uses: `locked` prevents other commands from using the run, and a worker that cannot see the file reports
    that its machine does not share the driver's storage.
    """
    root = Folder.at(run.config.storage_path)
    return (root / f".running-{run.name}").path if root.is_local else None


@contextmanager
def locked(run: Run) -> Iterator[None]:
    """Prevent other commands from using the same run within this context, if its folder is on a disk.

    Raises:
        UsageError: if another command is using it.
    """
    path = lock_file(run)
    if path is None or not torchrun.is_rank_zero():
        yield
        return
    try:
        file = _lock(path)
    except BlockingIOError:
        raise UsageError(
            f"run {run.name} in --storage-path {os.path.dirname(path)} is already running: wait for it to finish, or "
            "use another --run-name."
        ) from None
    with file:
        try:
            yield
        finally:
            with suppress(OSError):
                os.unlink(path)


def _lock(path: str) -> IO[str]:
    """The open file at a path, locked until it is closed or this process exits for any reason.

    Raises:
        BlockingIOError: if another process has locked it.
    """
    while True:
        file = open(path, "w")  # noqa: SIM115 - the caller closes it
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise
        except OSError:
            # The file system does not support locks.
            return file
        # A command that ended in between has deleted the file, and another may have created and locked a new one.
        if _is_at(file, path):
            return file
        file.close()


def _is_at(file: IO[str], path: str) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    return False
