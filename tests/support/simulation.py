"""Simulated processes with threads, which can be killed or frozen, on a clock that stands still while they run.

The threads are real ones, of which only one runs at a time: it runs until it pauses, and the scheduler then chooses the
next. So everything is repeatable, and takes no time to wait.
"""

import threading
from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, Literal

START = 1_800_000_000.0


class Killed(BaseException):
    """Unwinds the threads of a process that was killed, which cannot do anything meanwhile."""


class Process:
    """A simulated process on a simulated machine.

    Attributes:
        failure: the exception that ended its main thread.
    """

    def __init__(self, name: str, machine: int) -> None:
        self.name, self.machine = name, machine
        self.state: Literal["running", "frozen", "dead"] = "running"
        self.failure: Exception | None = None

    def __repr__(self) -> str:
        return self.name


class SimulatedThread:
    """A thread of a process: it can run at the time `wakes_at`, or as soon as `is_ready`."""

    def __init__(self, process: Process, is_main: bool) -> None:
        self.process, self.is_main = process, is_main
        self.wakes_at = float("-inf")
        self.is_ready: Callable[[], bool] | None = None
        self.may_run = threading.Lock()
        self.may_run.acquire()


class World:
    """All processes and their clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self.processes: list[Process] = []
        self._threads: list[SimulatedThread] = []
        self._current: SimulatedThread | None = None
        self._has_ended = threading.Lock()
        self._has_ended.acquire()
        self._end = 0.0
        self._until: Callable[[], bool] = lambda: True
        self._choose: Callable[[int], int] = lambda _: 0

    @property
    def process(self) -> Process:
        """The process whose thread is running."""
        assert self._current
        return self._current.process

    def start(self, name: str, machine: int, work: Callable[[], None]) -> Process:
        process = Process(f"{name}{len(self.processes)}", machine)
        self.processes.append(process)
        self._start_thread(SimulatedThread(process, is_main=True), work)
        return process

    def start_thread(self, work: Callable[[], None]) -> None:
        self._start_thread(SimulatedThread(self.process, is_main=False), work)

    def _start_thread(self, thread: SimulatedThread, work: Callable[[], None]) -> None:
        def run() -> None:
            thread.may_run.acquire()
            try:
                with suppress(Killed):
                    self.require_alive()
                    work()
            except Exception as error:
                thread.process.failure = error
            if thread.is_main:
                thread.process.state = "dead"
            self._threads.remove(thread)
            self._switch_to(self._next())

        self._threads.append(thread)
        threading.Thread(target=run, daemon=True).start()

    def require_alive(self) -> None:
        """End the running thread if its process is dead."""
        if self.process.state == "dead":
            raise Killed

    def pause(self, seconds: float = 0.0, is_ready: Callable[[], bool] | None = None) -> None:
        """Let other threads run, for this time or until something is ready."""
        self.require_alive()
        thread = self._current
        assert thread
        thread.wakes_at, thread.is_ready = self.now + seconds, is_ready
        following = self._next()
        if following is not thread:
            self._switch_to(following)
            thread.may_run.acquire()
        self.require_alive()

    def wait(self, is_ready: Callable[[], bool], seconds: float = float("inf")) -> bool:
        """Wait until something is ready, at most for this time; whether it is."""
        if not is_ready():
            self.pause(seconds, is_ready)
        return is_ready()

    def run(
        self,
        seconds: float,
        until: Callable[[], bool] = lambda: False,
        choose: Callable[[int], int] = lambda _: 0,
    ) -> None:
        """Run everything for this time, or until something is true.

        `choose` picks among the threads that can run; by default they take turns.
        """
        self._end, self._until, self._choose = self.now + seconds, until, choose
        self._wait_for(self._next())

    def _wait_for(self, thread: SimulatedThread | None) -> None:
        if thread:
            self._switch_to(thread)
            self._has_ended.acquire()
        self._current = None

    def _next(self) -> SimulatedThread | None:
        """The thread that runs next; None if none does."""
        while not self._until():
            able = [thread for thread in self._threads if self._can_run(thread)]
            if able:
                thread = able[self._choose(len(able)) % len(able)]
                # To the end of the queue.
                self._threads.remove(thread)
                self._threads.append(thread)
                return thread
            waking = [thread.wakes_at for thread in self._threads if thread.process.state == "running"]
            self.now = min([*waking, max(self.now, self._end)])
            if self.now >= self._end:
                break
        return None

    def _can_run(self, thread: SimulatedThread) -> bool:
        is_awake = thread.wakes_at <= self.now or (thread.is_ready is not None and thread.is_ready())
        return is_awake and thread.process.state == "running"

    def _switch_to(self, thread: SimulatedThread | None) -> None:
        self._current = thread
        (thread.may_run if thread else self._has_ended).release()

    def close(self) -> None:
        """End all threads."""
        self._until = lambda: True
        for process in self.processes:
            process.state = "dead"
        while self._threads:
            self._wait_for(self._threads[0])

    def time_module(self) -> Any:
        """Takes the place of the module `time`."""
        return SimpleNamespace(
            time=lambda: START + self.now,
            monotonic=lambda: self.now,
            clock_gettime=lambda _: self.now,
            sleep=self.pause,
        )

    def threading_module(self) -> Any:
        """Takes the place of the module `threading`."""
        return SimpleNamespace(
            Thread=lambda target, args=(), **_: SimpleNamespace(start=lambda: self.start_thread(lambda: target(*args))),
            Event=lambda: _Event(self),
            RLock=lambda: _RLock(self),
        )

    def executor(self, _workers: int) -> "_Executor":
        """Takes the place of ThreadPoolExecutor with one thread."""
        return _Executor(self)


class _Event:
    def __init__(self, world: World) -> None:
        self._world, self._is_set = world, False

    def set(self) -> None:
        self._is_set = True

    def is_set(self) -> bool:
        return self._is_set

    def wait(self, seconds: float) -> bool:
        return self._world.wait(self.is_set, seconds)


class _RLock:
    def __init__(self, world: World) -> None:
        self._world, self._owner, self._depth = world, None, 0

    def __enter__(self) -> None:
        me = self._world._current
        self._world.wait(lambda: self._owner in (None, me))
        self._owner, self._depth = me, self._depth + 1

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        self._owner = self._owner if self._depth else None


class Future:
    """What an executor returns."""

    def __init__(self, world: World, work: Callable[[], None]) -> None:
        self._world, self._work = world, work
        self.state: Literal["waiting", "running", "done"] = "waiting"
        self._error: Exception | None = None

    def run(self) -> None:
        if self.state == "waiting":
            self.state = "running"
            try:
                self._work()
            except Exception as error:
                self._error = error
            self.state = "done"

    def cancel(self) -> None:
        self.state = "done" if self.state == "waiting" else self.state

    def done(self) -> bool:
        return self.state == "done"

    def result(self) -> None:
        self._world.wait(self.done)
        if self._error:
            raise self._error


class _Executor:
    def __init__(self, world: World) -> None:
        self._world, self._queue, self._has_thread = world, list[Future](), False

    def submit(self, function: Callable[..., None], *arguments: Any) -> Future:
        future = Future(self._world, lambda: function(*arguments))
        self._queue.append(future)
        if not self._has_thread:
            self._has_thread = True
            self._world.start_thread(self._work)
        return future

    def _work(self) -> None:
        while self._world.wait(lambda: bool(self._queue)):
            self._queue.pop(0).run()


def wait_for(futures: list[Future], seconds: float = float("inf")) -> Any:
    """Takes the place of concurrent.futures.wait."""
    for future in futures:
        future._world.wait(future.done, seconds)
    return SimpleNamespace(done=[future for future in futures if future.done()])
