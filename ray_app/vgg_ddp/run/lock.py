"""Let only one command use a run: it locks a file, and holds a lease where locks do not reach all machines."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from typing import IO

from pyarrow import fs

from vgg_ddp.flags import UsageError
from vgg_ddp.machine import torchrun
from vgg_ddp.machine.disks import is_on_own_disk
from vgg_ddp.run.conditional import ConditionalObject, Stored, UnsupportedError
from vgg_ddp.run.lease import LEASE_FILE, LEASE_FOLDER, HeldError, Lease
from vgg_ddp.run.notes import print_note_once
from vgg_ddp.run.runs import Run
from vgg_ddp.run.storage import Folder
from vgg_ddp.run.versions import VersionedFile


class ChangedError(Exception):
    """Another command has started or finished the run after this one opened it, which must open it again."""


def lock_file(run: Run) -> str | None:
    """The file that a command locks while it uses a run; None if the run folder is not on a disk.

    It has two uses: `locked` prevents other commands from using the run, and a worker that cannot see the file reports
    that its machine does not share the driver's storage.
    """
    root = Folder.at(run.config.storage_path)
    return (root / f".running-{run.name}").path if root.is_local else None


@contextmanager
def locked(run: Run) -> Iterator[Run]:
    """Prevent other commands from using the same run within this context; the run, as this command may write to it.

    Raises:
        UsageError: if another command is using it.
    """
    path = lock_file(run)
    if not torchrun.is_rank_zero():
        yield run
    elif path is None:
        with _leased(run) as run:
            yield run
    else:
        with _locked_file(run, path) as is_locked:
            is_enough = is_locked and is_on_own_disk(path)
            with nullcontext(run) if is_enough else _leased(run, is_locked) as run:
                try:
                    yield run
                finally:
                    if not run.folder.lost:
                        with suppress(OSError):
                            os.unlink(path)


def require_unchanged(run: Run) -> None:
    """Check, once the run is locked, that it is still as this command found it. Under torchrun, only rank 0 checks.

    Raises:
        ChangedError: if another command has used it in the meantime.
        UsageError: if the storage cannot be read.
    """
    if not torchrun.is_rank_zero():
        return
    if run.is_finished() if run.exists else run.was_started():
        raise ChangedError


def _is_running(run: Run) -> UsageError:
    return UsageError(
        f"run {run.name} in --storage-path {run.config.storage_path} is already running: wait for it to finish, or use "
        "another --run-name."
    )


@contextmanager
def _leased(run: Run, is_locked: bool = False) -> Iterator[Run]:
    """Hold a lease on a run within this context; without one, and with a NOTE, if the storage cannot have one.

    Raises:
        UsageError: if another command has it.
    """
    lease = _acquired(run, "commands on other machines" if is_locked else "other commands")
    try:
        yield replace(run, folder=replace(run.folder, lease=lease))
    finally:
        if lease:
            lease.release()


def _acquired(run: Run, others: str) -> Lease | None:
    try:
        lease = Lease(_stored(run.folder), run.name)
        lease.acquire()
        return lease
    except HeldError:
        raise _is_running(run) from None
    except UnsupportedError as error:
        print_note_once(f"nothing prevents {others} from using run {run.name} at the same time: {error}.")
        return None
    except OSError as error:
        raise UsageError(f"--storage-path {run.config.storage_path} cannot be written: {error}") from error


def _stored(run: Folder) -> Stored:
    """Where the lease on a run is.

    Raises:
        UnsupportedError: if it cannot have one.
    """
    if run.is_local:
        return VersionedFile((run / LEASE_FOLDER).path)
    if isinstance(run.filesystem, fs.S3FileSystem):
        return ConditionalObject(run.filesystem, (run / LEASE_FILE).path)
    raise UnsupportedError(f"leases work only on disks and on S3, not on {run.filesystem.type_name}")


@contextmanager
def _locked_file(run: Run, path: str) -> Iterator[bool]:
    """Lock the file of a run within this context, or until this process exits; False if files cannot be locked here.

    Raises:
        UsageError: if another command has locked it.
    """
    try:
        file, is_locked = _lock(path)
    except BlockingIOError:
        raise _is_running(run) from None
    with file:
        yield is_locked


def _lock(path: str) -> tuple[IO[str], bool]:
    """The open file at a path, and whether it is locked, until it is closed or this process exits for any reason.

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
            return file, False
        # A command that ended in between has deleted the file, and another may have created and locked a new one.
        if _is_at(file, path):
            return file, True
        file.close()


def _is_at(file: IO[str], path: str) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    return False
