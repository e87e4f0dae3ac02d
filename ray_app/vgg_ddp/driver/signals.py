"""How the driver handles Ctrl-C and SIGTERM, and how it asks the workers of a Ray cluster to stop.

Rank 0 checks for an actor of an agreed name, which the driver starts only to stop the run. Each check costs one request
to the head node, and no process has to wait for a message.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self, TypeVar

import ray

T = TypeVar("T")
SECONDS_BETWEEN_CHECKS = 0.5
# Of the usual 30 s from SIGTERM to SIGKILL; the rest is for shutting down Ray.
SECONDS_TO_SAVE = 22.0


class InterruptedRunError(BaseException):
    """A signal ended the run before its workers did. Like KeyboardInterrupt, not an error that anyone may survive."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.exit_code = 128 + signal_number


@contextmanager
def interrupt_on_sigterm() -> Iterator[None]:
    """Make SIGTERM raise `InterruptedRunError` in the main thread, during ray.init in this context and afterwards.

    ray.init installs its own handler, which exits with the signal's number.
    """

    def interrupt(number: int, _: FrameType | None) -> None:
        raise InterruptedRunError(number)

    try:
        yield
    except SystemExit as request:
        if request.code == signal.SIGTERM:
            interrupt(signal.SIGTERM, None)
        raise
    signal.signal(signal.SIGTERM, interrupt)


class SignalWatch:
    """Records which of the watched signals this process received.

    Create it in the main thread and after ray.init, which replaces existing handlers.
    """

    def __init__(self, *watched: signal.Signals) -> None:
        self.received: set[int] = set()
        self._previous = {number: signal.signal(number, self._record) for number in watched}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _record(self, number: int, _: FrameType | None) -> None:
        self.received.add(number)


def call_interruptibly(call: Callable[[], T], stop_workers: Callable[[], object]) -> T:
    """Call a function in another thread and wait for it, keeping this thread free for signals.

    On SIGTERM, the workers are asked to save and stop, and the call has `SECONDS_TO_SAVE` to return.

    Raises:
        InterruptedRunError: immediately on Ctrl-C; on SIGTERM if the call does not return in time.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="trainer", daemon=True)
    deadline = float("inf")
    with SignalWatch(signal.SIGINT, signal.SIGTERM) as watch:
        thread.start()
        while thread.is_alive():
            thread.join(0.1)
            if signal.SIGINT in watch.received:
                raise InterruptedRunError(signal.SIGINT)
            if signal.SIGTERM in watch.received and deadline == float("inf"):
                deadline = time.monotonic() + SECONDS_TO_SAVE
                print("SIGTERM: saving a checkpoint, then stopping", flush=True)
                # In a thread: the same signal may have ended the cluster, which then does not respond.
                threading.Thread(target=stop_workers, name="stop", daemon=True).start()
            if time.monotonic() > deadline:
                raise InterruptedRunError(signal.SIGTERM)
    if errors:
        raise errors[0]
    return results[0]


class StopFlag:
    """A flag that the driver raises to stop the run; visible to every process of the Ray cluster."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._flag: Any = None
        self._checked_at = 0.0

    def raise_flag(self) -> None:
        """Raise the flag; it stays raised while this object lives."""

        class Flag:
            """Its existence is the signal."""

        self._flag = ray.remote(num_cpus=0)(Flag).options(name=self._name).remote()

    def is_raised(self) -> bool:
        """Whether the flag is raised; queries the cluster at most twice per second."""
        now = time.monotonic()
        if now - self._checked_at < SECONDS_BETWEEN_CHECKS:
            return False
        self._checked_at = now
        try:
            ray.get_actor(self._name)
        except ValueError:
            return False
        return True
