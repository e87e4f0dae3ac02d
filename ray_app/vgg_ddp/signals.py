"""Ctrl-C and SIGTERM: what the driver does about them, and how the workers of a Ray cluster learn of it.

A worker looks for an actor of an agreed name, which the driver starts only when the run shall stop: until then the look
costs one request to the head node, and no process waits for the message.
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
SECONDS_BETWEEN_LOOKS = 0.5
# From SIGTERM to the end, all in all, are 30 s: the rest is for shutting Ray down.
SECONDS_TO_SAVE = 22.0


class InterruptedRunError(Exception):
    """A signal ended the run before its workers did."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.exit_code = 128 + signal_number


@contextmanager
def interrupt_on_sigterm() -> Iterator[None]:
    """While ray.init runs in this context, and from then on, SIGTERM raises `InterruptedRunError` in the main thread.

    ray.init sets a handler of its own, which exits with the number of the signal.
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
    """Remembers which of SIGINT and SIGTERM this process received; made in the main thread, after ray.init.

    ray.init replaces the handlers that it finds.
    """

    def __init__(self, *watched: signal.Signals) -> None:
        self.received: set[int] = set()
        self._former = {number: signal.signal(number, self._remember) for number in watched}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _remember(self, number: int, _: FrameType | None) -> None:
        self.received.add(number)


def call_interruptibly(call: Callable[[], T], stop_workers: Callable[[], object]) -> T:
    """Call a function in another thread and wait for it, with this one free for signals.

    On SIGTERM the workers are asked to save and stop, and the call is waited for a while longer.

    Raises:
        InterruptedRunError: on Ctrl-C at once, on SIGTERM if the call does not return in time.
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
                # It asks the cluster, which may have been ended by the same signal, and then does not answer.
                threading.Thread(target=stop_workers, name="stop", daemon=True).start()
            if time.monotonic() > deadline:
                raise InterruptedRunError(signal.SIGTERM)
    if errors:
        raise errors[0]
    return results[0]


class StopFlag:
    """Up once the driver wants the run to stop; seen by every process of the Ray cluster."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._flag: Any = None
        self._looked_at = 0.0

    def put_up(self) -> None:
        """Put the flag up; it stays up while this object lives."""

        class Flag:
            """Says what it has to say by being there."""

        self._flag = ray.remote(num_cpus=0)(Flag).options(name=self._name).remote()

    def is_up(self) -> bool:
        """Whether the flag is up; looks at most twice a second."""
        now = time.monotonic()
        if now - self._looked_at < SECONDS_BETWEEN_LOOKS:
            return False
        self._looked_at = now
        try:
            ray.get_actor(self._name)
        except ValueError:
            return False
        return True
