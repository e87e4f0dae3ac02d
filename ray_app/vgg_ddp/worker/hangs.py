"""Notice that the ranks no longer come together, name those that hang, and end this rank's wait.

Beside the training loop of each rank, a `HangMonitor` counts the points where all ranks come together. While a rank
does not move, its monitor reports where it is in the key-value store of the process group, and reads the reports of
the others. Two threads share that work: a request to the store of a frozen process ignores all timeouts, so the thread
that judges and ends the wait makes none.
"""

import contextlib
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch.distributed as dist

from vgg_ddp.compat.torch_store import abort_collectives, default_store, set_collective_timeout
from vgg_ddp.worker.reports import ENDED, JUDGED, SECONDS_TO_ANSWER, Report, find_hung

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_REPORTS = 1.0
SECONDS_BETWEEN_CHECKS = 0.2
# Additional time for the other thread.
SECONDS_TO_JUDGE = 3.0
# Aborting NCCL ends a wait at once.
SECONDS_TO_LEAVE_NCCL = 5.0


# Errors of the other ranks after one rank is gone: a consequence, not the cause.
_CONSEQUENCE = re.compile(r"Connection (closed|reset) by peer|gloo|NCCL|Broken pipe|Application timeout", re.IGNORECASE)


class HungRankError(Exception):
    """Some ranks did not come together with the others in time."""


def explain(hung: list[int], step: int, timeout_seconds: float) -> HungRankError:
    """The error that names the hung ranks."""
    who = f"rank {hung[0]}" if len(hung) == 1 else f"ranks {', '.join(map(str, hung))}"
    return HungRankError(
        f"{who if hung else 'a rank'} hung: no answer within {timeout_seconds:g} s in step {step + 1} "
        "(--collective-timeout-seconds)"
    )


class HangMonitor:
    """Watches the training loop of this rank.

    Attributes:
        error: names the hung ranks; None so far.
    """

    def __init__(self, timeout_seconds: float) -> None:
        self.error: HungRankError | None = None
        self._timeout_seconds = timeout_seconds
        self._position = 0
        self._arrived_at = self._moved_at = time.monotonic()
        # Since when the store has not answered the current request, whether there is no store, and what it holds.
        self._requested_at: float | None = None
        self._is_blind = False
        self._others: dict[int, Report] | None = None
        # The ranks that hang, according to this rank's monitor or that of another rank.
        self._hung: list[int] | None = None
        self._timed_out, self._judged, self._left = threading.Event(), threading.Event(), threading.Event()
        self._threads: list[threading.Thread] = []

    def arrive(self) -> None:
        """Call right before all ranks come together, on each rank in the same order.

        Raises:
            HungRankError: if this rank's wait was ended: what it has computed since is worthless.
        """
        self.check()
        self._position += 1
        self._arrived_at = self._moved_at = time.monotonic()

    def beat(self) -> None:
        """Show that this rank moves, although it does not come to where the others wait."""
        self._moved_at = time.monotonic()

    def check(self) -> None:
        """Call after the ranks have come together.

        Raises:
            HungRankError: if they have not: this rank's wait was ended.
        """
        if self.error:
            raise self.error

    def start(self, step: Callable[[], int]) -> None:
        """Start to watch; `step` returns the current step."""
        backend = dist.get_backend()
        # The monitor comes first. NCCL's timeout would end the process; gloo's ends the wait.
        waits = 2 * self._timeout_seconds + 60 if backend == "nccl" else self._timeout_seconds + SECONDS_TO_ANSWER
        set_collective_timeout(waits)
        self._arrived_at = self._moved_at = time.monotonic()
        # Daemons, because a frozen store blocks the first one forever.
        self._threads = [
            threading.Thread(target=self._report, args=(default_store(),), daemon=True),
            threading.Thread(target=self._watch, args=(step, backend), daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop watching, because the training loop has ended."""
        self._left.set()
        for thread in self._threads:
            thread.join(SECONDS_BETWEEN_REPORTS)

    def judge(self, error: Exception) -> HungRankError | None:
        """The error that names the hung ranks, if they are the cause of an error of the training loop."""
        if is_timeout(error):
            self._timed_out.set()
            self._judged.wait(SECONDS_TO_ANSWER + SECONDS_TO_JUDGE)
        elif is_consequence(error) and self._idle_seconds() > self._timeout_seconds / 2:
            # The rank that has closed the connection may only be the first one that gave up waiting.
            self._judged.wait(2 * SECONDS_TO_JUDGE)
        return self.error

    def _idle_seconds(self) -> float:
        return time.monotonic() - self._moved_at

    def _report(self, store: Any) -> None:
        """Report where this rank is, and read the reports of the others, until the training loop ends."""
        self._is_blind = store is None
        number, rank = 0, dist.get_rank()
        others = [other for other in range(dist.get_world_size()) if other != rank]
        try:
            while store is not None and not self._left.wait(SECONDS_BETWEEN_REPORTS) and self._hung is None:
                # Ranks that come together all the time cost no requests.
                if time.monotonic() - self._arrived_at < SECONDS_BETWEEN_REPORTS:
                    self._others = None
                    continue
                self._requested_at = time.monotonic()
                number += 1
                store.set(_key(rank), f"{self._position} {self._idle_seconds()} {number}")
                self._others = self._read(store, others) if self._is_suspicious() else None
                self._requested_at = None
            if store is not None:
                store.set(_key(rank), ENDED if self._hung is None else JUDGED + " ".join(map(str, self._hung)))
        except RuntimeError as error:
            # The store is gone, and with it the process of another rank, whose failure is reported.
            logger.info("The ranks cannot tell each other where they are: %s", error)
            self._is_blind, self._requested_at = True, None

    def _is_suspicious(self) -> bool:
        return self._idle_seconds() >= self._timeout_seconds - SECONDS_TO_ANSWER - SECONDS_TO_JUDGE

    def _read(self, store: Any, others: list[int]) -> dict[int, Report]:
        """The reports of the other ranks that still train."""
        previous, now = self._others or {}, time.monotonic()
        texts = {rank: store.get(_key(rank)) if store.check([_key(rank)]) else b"" for rank in others}
        for text in texts.values():
            if text.startswith(JUDGED.encode()):
                # NCCL would not tell this rank that the other one no longer waits.
                self._hung = [int(rank) for rank in text.removeprefix(JUDGED.encode()).split()]
        training = {
            rank: text for rank, text in texts.items() if not text.startswith((ENDED.encode(), JUDGED.encode()))
        }
        return {rank: Report.read(text, previous.get(rank), now) for rank, text in training.items()}

    def _watch(self, step: Callable[[], int], backend: str) -> None:
        """Judge whether ranks hang, and end this rank's wait if so."""
        while not self._left.wait(SECONDS_BETWEEN_CHECKS):
            hung = self._find_hung() if self._hung is None else self._hung
            if hung is not None:
                self._hung = hung
                self._end_wait(explain(hung, step(), self._timeout_seconds), backend)
                return

    def _find_hung(self) -> list[int] | None:
        idle_seconds, must = self._idle_seconds(), self._timed_out.is_set()
        requested_at, others = self._requested_at, self._others
        if idle_seconds < self._timeout_seconds and not must:
            return None
        if requested_at is not None:
            # Ray keeps the store in rank 0's process.
            return [0] if time.monotonic() - requested_at >= SECONDS_TO_ANSWER else None
        if self._is_blind:
            return [] if idle_seconds >= 2 * self._timeout_seconds else None
        own = Report(self._position, idle_seconds, changed_at=time.monotonic())
        return find_hung(others | {dist.get_rank(): own}, self._timeout_seconds, must) if others else None

    def _end_wait(self, error: HungRankError, backend: str) -> None:
        self.error = error
        self._judged.set()
        if backend == "nccl":
            # Before the abort, because NCCL's watchdog may end the process when it notices that.
            print(f"error: {error}", file=sys.stderr, flush=True)
            # In a thread, because it waits for the GPU, which may hang.
            threading.Thread(target=abort_collectives, daemon=True).start()
            if self._left.wait(SECONDS_TO_LEAVE_NCCL):
                return
        else:
            # gloo's own timeout ends the wait, which may have begun up to a timeout later than the monitor's.
            if self._left.wait(self._timeout_seconds + 2 * SECONDS_TO_ANSWER):
                return
            print(f"error: {error}", file=sys.stderr, flush=True)
        # The training loop is stuck elsewhere: this rank is the one that hangs, or its GPU does.
        os._exit(1)


def _key(rank: int) -> str:
    return f"vgg_ddp/position/{rank}"


def is_timeout(error: Exception) -> bool:
    """Whether a collective timed out, rather than losing a connection.

    The second message is gloo's for other collectives that were in flight.
    """
    return any(message in str(error).lower() for message in ("timed out", "application timeout"))


def is_consequence(failure: Exception) -> bool:
    """Whether a worker failed only because another rank had stopped."""
    return bool(_CONSEQUENCE.search(str(failure)))


@contextlib.contextmanager
def hung_ranks_named(monitor: HangMonitor, step: Callable[[], int]) -> Iterator[None]:
    """Watch the training loop in this context; a single rank waits for nobody.

    Raises:
        HungRankError: instead of the loop's own error, if hung ranks are its cause.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        yield
        return
    monitor.start(step)
    try:
        yield
    # Any error: after an aborted collective, the loop computes with values that mean nothing.
    except Exception as error:
        if hang := monitor.judge(error):
            raise hang from None
        raise
    finally:
        monitor.stop()
