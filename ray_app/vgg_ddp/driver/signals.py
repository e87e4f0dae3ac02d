"""How the driver handles Ctrl-C, SIGTERM and SIGHUP, and how it asks the workers of a Ray cluster to stop.

Rank 0 checks for an actor of an agreed name, which the driver starts only to stop the run. Each check costs one request
to the head node, and no process has to wait for a message.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self, TypeVar

import ray

from vgg_ddp.driver.background import in_background

T = TypeVar("T")
SECONDS_BETWEEN_CHECKS = 0.5
# Of the usual 30 s from SIGTERM to SIGKILL; the rest is for shutting down Ray.
SECONDS_TO_SAVE = 22.0


class InterruptedRunError(BaseException):
    """A signal ended the run before its workers did.

    Like KeyboardInterrupt, not an Exception, so that no handler swallows it.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number = signal_number


def signal_of(error: InterruptedRunError | KeyboardInterrupt) -> int:
    """The signal that raised this error."""
    return error.signal_number if isinstance(error, InterruptedRunError) else signal.SIGINT


def stop_signals() -> tuple[signal.Signals, ...]:
    """The signals that make a run save and stop: SIGTERM and, if this process does not ignore it, SIGHUP.

    A terminal that closes sends SIGHUP to its processes; `nohup` makes them ignore it. Only the main thread can handle
    signals, so there are none in others.
    """
    if not _is_main_thread():
        return ()
    is_ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return (signal.SIGTERM,) if is_ignored else (signal.SIGTERM, signal.SIGHUP)


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


@contextmanager
def interrupt_on_signals() -> Iterator[None]:
    """Make `stop_signals` raise `InterruptedRunError` in the main thread, in this context and afterwards.

    Call ray.init in this context. A terminal that closes also sends SIGHUP to Ray's processes, which must outlive it to
    save a checkpoint: they inherit the blocked signal. For SIGTERM, ray.init installs its own handler, which exits with
    the signal's number.
    """

    def interrupt(number: int, _: FrameType | None) -> None:
        raise InterruptedRunError(number)

    handled = stop_signals()
    for number in handled:
        signal.signal(number, interrupt)
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
        yield
    except SystemExit as request:
        if request.code == signal.SIGTERM:
            interrupt(signal.SIGTERM, None)
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
    for number in handled:
        signal.signal(number, interrupt)


class SignalWatch:
    """Records which of the watched signals this process received, in order.

    Create it in the main thread and after ray.init, which replaces existing handlers.
    """

    def __init__(self, *watched: signal.Signals) -> None:
        self.received: list[int] = []
        self._previous = {number: signal.signal(number, self._record) for number in watched}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _record(self, number: int, _: FrameType | None) -> None:
        self.received.append(number)


def call_interruptibly(call: Callable[[], T], stop_workers: Callable[[int], object], is_shared: bool = False) -> T:
    """Call a function in another thread and wait for it, keeping this thread free for signals.

    On the first of `stop_signals`, `stop_workers` is called with its number to make the workers save and stop, and the
    call has `SECONDS_TO_SAVE` to return. On a cluster that outlives the run (`is_shared`), Ctrl-C does the same.

    Raises:
        InterruptedRunError: immediately on Ctrl-C otherwise; on another signal if the call does not return in time.
    """
    deadline = float("inf")
    watched = (signal.SIGINT, *stop_signals()) if _is_main_thread() else ()
    with SignalWatch(*watched) as watch:
        future = in_background(call)
        while not wait([future], 0.1).done:
            if signal.SIGINT in watch.received and not is_shared:
                raise InterruptedRunError(signal.SIGINT)
            if watch.received and deadline == float("inf"):
                deadline = time.monotonic() + SECONDS_TO_SAVE
                number = watch.received[0]
                print(f"{signal.Signals(number).name}: saving a checkpoint, then stopping", flush=True)
                # In a thread: the same signal may have ended the cluster, which then does not respond.
                threading.Thread(target=stop_workers, args=(number,), name="stop", daemon=True).start()
            if time.monotonic() > deadline:
                raise InterruptedRunError(watch.received[0])
    return future.result()


class StopFlag:
    """A flag that the driver raises to stop the run; visible to every process of the Ray cluster.

    Attributes:
        signal_number: the signal for which the driver raised it.
    """

    def __init__(self, name: str) -> None:
        self.signal_number: int = signal.SIGTERM
        self._name = name
        self._flag: Any = None
        self._checked_at = 0.0

    def raise_flag(self, signal_number: int) -> None:
        """Raise the flag because of a signal; it stays raised while this object lives."""
        self.signal_number = signal_number

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
