"""What rank 0 writes to the run folder while training goes on, and whether it could be written."""

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

from vgg_ddp import checkpoint
from vgg_ddp.storage import Folder

logger = logging.getLogger(__name__)

# In seconds; on S3 each attempt retries for some 6 s by itself.
RETRY_DELAYS = (1.0, 4.0, 10.0)


class Saver:
    """Writes this run's checkpoints in a thread, the same under Ray Train and torchrun.

    They are not reported to Ray Train. Its controller would keep a list of them on the same storage, and in Ray 2.60 a
    list that cannot be written for a moment ends the run, and one that lags behind keeps a killed run from resuming.

    Attributes:
        failure: why something could not be written; a restart would meet the same storage, so the run has to end.
    """

    def __init__(self, run: Folder, rank: int) -> None:
        self.failure: str | None = None
        self._run = run
        self._rank = rank
        self._writer = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None
        self._passing: Future[None] | None = None

    def keep(self, write: Callable[[], None]) -> None:
        """Write what the run cannot do without; what fails again and again becomes `failure`."""
        for delay in (*RETRY_DELAYS, None):
            try:
                write()
                return
            except OSError as error:
                if delay is None:
                    self.failure = f"{self._run} cannot be written: {error}"
                    return
                logger.warning("%s: trying again in %.0f s.", error, delay)
                time.sleep(delay)

    def note(self, write: Callable[[], None]) -> None:
        """Write what will be written anew later: where it fails now, the run goes on."""
        try:
            write()
        except OSError as error:
            logger.warning("%s: going on without it.", error)

    def note_meanwhile(self, write: Callable[[], None]) -> None:
        """Write what is only of use now: in the background, and not at all where that is busy or fails."""
        if self._rank == 0 and (self._passing is None or self._passing.done()):
            self._passing = self._writer.submit(_write_if_possible, write)

    def save(self, state: checkpoint.State) -> None:
        """Start to write a checkpoint, once the one before is written. Rank 0 alone does: all hold the same weights.

        Nothing is written after a failure: the run is about to end, and to wait for the storage again would delay that.
        """
        if self._rank == 0:
            snapshot = checkpoint.copy_to_host(state)
            self.wait()
            if not self.failure:
                self._pending = self._writer.submit(self._write, snapshot)

    def _write(self, snapshot: checkpoint.State) -> None:
        name = checkpoint.new_name(snapshot["step"])
        self.keep(lambda: checkpoint.write(self._run, name, snapshot))

    def wait(self) -> None:
        """Wait until the last checkpoint is written, or cannot be."""
        if self._pending:
            self._pending.result()


def _write_if_possible(write: Callable[[], None]) -> None:
    # What matters is written by others, who then say that the storage fails.
    with suppress(OSError):
        write()
