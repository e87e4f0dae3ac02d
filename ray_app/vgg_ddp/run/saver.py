"""Write to the run folder during training, and record failures."""

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress

from vgg_ddp.run import checkpoint
from vgg_ddp.run.lease import LeaseLostError
from vgg_ddp.run.notes import noted
from vgg_ddp.run.storage import Folder

logger = logging.getLogger(__name__)

# In seconds. On S3, each attempt includes retries for about 6 s.
RETRY_DELAYS = (1.0, 4.0, 10.0)
SECONDS_BETWEEN_BEATS = 1.0


class Saver:
    """Writes the run's checkpoints in a background thread, the same way under Ray Train and torchrun.

    Checkpoints are not reported to Ray Train, because its controller would keep a list of them on the same storage. In
    Ray 2.60, one failed write of that list ends the run, and an outdated list prevents a killed run from resuming.

    Attributes:
        checkpoint_time: when the newest complete checkpoint was taken, or this saver was made, in seconds since 1970.
    """

    def __init__(self, run: Folder, rank: int) -> None:
        self._failure: str | None = None
        self.checkpoint_time = time.time()
        self._run = run
        self._rank = rank
        self._writer = ThreadPoolExecutor(1)
        self._checkpoint: Future[None] | None = None
        self._temporary: Future[None] | None = None
        self._newest: dict[str, Future[None]] = {}
        self._noted: set[str] = set()

    @property
    def failure(self) -> str | None:
        """Why a required file could not be written, or must not be because another command writes to the run folder.

        A restart would use the same storage, so the run must end.
        """
        return self._run.lost or self._failure

    def write_reliably(self, write: Callable[[], None]) -> None:
        """Write a file that the run requires: retry, and set `failure` if the last attempt fails."""
        try:
            _write_with_retries(write)
        except OSError as error:
            self._failure = f"{self._run} cannot be written: {error}"

    def write_if_possible(self, name: str, write: Callable[[], None], retry: bool = False) -> None:
        """Write an optional file; the first failure is printed, and the run continues without it."""
        # A lost lease is in `failure`.
        with noted(f"{self._run / name} could not be written", self._noted), suppress(LeaseLostError):
            if retry:
                _write_with_retries(write)
            else:
                write()

    def write_newest(self, name: str, write: Callable[[], None]) -> None:
        """Write an optional file in the background: storage that is slow does not hold up training.

        If an earlier version of the file still waits for its turn, the new one replaces it.
        """
        if name in self._newest:
            self._newest[name].cancel()
        self._newest[name] = self._writer.submit(self.write_if_possible, name, write)

    def write_in_background(self, write: Callable[[], None]) -> None:
        """Write a short-lived file; skipped while the previous such write is still running."""
        if self._rank == 0 and (self._temporary is None or self._temporary.done()):
            self._temporary = self._writer.submit(_ignore_failure, write)

    def save(self, state: checkpoint.State, beat: Callable[[], None] = lambda: None) -> None:
        """Start writing a checkpoint, after waiting for the previous one. Only rank 0 writes: all weights are equal.

        After a failure, nothing is written: the run is about to end, and waiting for the storage would delay that.
        During the wait, `beat` is called every second.
        """
        if self._rank == 0:
            snapshot = checkpoint.copy_to_host(state)
            if self._checkpoint:
                while not wait([self._checkpoint], SECONDS_BETWEEN_BEATS).done:
                    beat()
                self._checkpoint.result()
            if not self.failure:
                self._checkpoint = self._writer.submit(self._write_checkpoint, snapshot, time.time())

    def _write_checkpoint(self, snapshot: checkpoint.State, taken_at: float) -> None:
        name = checkpoint.new_name(snapshot["step"])
        self.write_reliably(lambda: checkpoint.write(self._run, name, snapshot))
        if not self.failure:
            self.checkpoint_time = taken_at

    def wait(self) -> None:
        """Wait for the background thread to finish all writes."""
        if self._checkpoint:
            self._checkpoint.result()
        wait([self._temporary] if self._temporary else [])
        for future in self._newest.values():
            future.result()

    def close(self) -> None:
        """Give up the right to write to the run folder, after the last write."""
        if self._run.lease:
            self._run.lease.leave()


def _write_with_retries(write: Callable[[], None]) -> None:
    for delay in RETRY_DELAYS:
        try:
            write()
            return
        except LeaseLostError:
            raise
        except OSError as error:
            logger.warning("%s: retrying in %.0f s.", error, delay)
            time.sleep(delay)
    write()


def _ignore_failure(write: Callable[[], None]) -> None:
    # Required writes use the same storage and report its failure.
    with suppress(OSError):
        write()
