"""Starts, logs, reaps and ends the processes of a container, as its PID 1."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
KEPT_LINES = 300


class Child:
    """A child process.

    Attributes:
        code: its exit code, negative if a signal ended it; None while it runs.
        lines: the last lines of its output.
    """

    def __init__(self, process: "subprocess.Popen[str]", show: Callable[[str], None]) -> None:
        self.code: int | None = None
        self.lines: deque[str] = deque(maxlen=KEPT_LINES)
        self.process = process
        self._show = show
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
            self._show(line)

    def last_lines(self) -> list[str]:
        """The last lines of its output, after a short wait for what is still in the pipe."""
        self._reader.join(2)
        return list(self.lines)

    def send_signal(self, number: int) -> None:
        if self.code is None:
            os.kill(self.process.pid, number)


class Processes:
    """Starts processes and reaps every process that ends, including orphans."""

    def __init__(self, redact: Callable[[str], str]) -> None:
        self._redact = redact
        self._children: list[Child] = []
        # So that orphans are reparented to this process even if it is not PID 1.
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def start(
        self, command: Sequence[str], environment: Mapping[str, str], cwd: Path | None = None, quiet: bool = False
    ) -> Child:
        """Start a process. Its output goes to the job's log, with secrets redacted, unless it is quiet."""
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        child = Child(process, (lambda _: None) if quiet else self._print)
        self._children.append(child)
        return child

    def _print(self, line: str) -> None:
        sys.stdout.write(self._redact(line))
        sys.stdout.flush()

    def reap(self) -> None:
        """Collect every process that ended. Nothing else may wait for a child, since that would take its exit code."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for child in self._children:
                if child.process.pid == pid:
                    child.code = os.waitstatus_to_exitcode(status)
                    # Otherwise Popen would wait for a process that is already reaped.
                    child.process.returncode = child.code

    def end_all(self, seconds: float) -> list[str]:
        """Send SIGTERM to all descendants, then SIGKILL to those left after this time; return the names of those."""
        # Signal all descendants: on the head, `ray start` may take longer to stop its children than SageMaker allows.
        for pid in descendants():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + seconds
        while (left := descendants()) and time.monotonic() < deadline:
            time.sleep(0.1)
            self.reap()
        killed = sorted(set(left.values()))
        while left := descendants():
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)
            self.reap()
        return killed


def descendants() -> dict[int, str]:
    """IDs and names of all live descendants of this process."""
    parents: dict[int, tuple[int, str]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            name, fields = _parse_stat((entry / "stat").read_text())
        except OSError:
            # The process exited after the listing.
            continue
        parents[int(entry.name)] = (int(fields[1]), name)
    found: dict[int, str] = {}
    generation = {os.getpid()}
    while generation:
        generation = {pid for pid, (parent, _) in parents.items() if parent in generation and pid not in found}
        found |= {pid: parents[pid][1] for pid in generation}
    return found


def _parse_stat(text: str) -> tuple[str, list[str]]:
    """The name in /proc/PID/stat, which may contain spaces and parentheses, and the fields after it."""
    start, end = text.index("("), text.rindex(")")
    return text[start + 1 : end], text[end + 2 :].split()
