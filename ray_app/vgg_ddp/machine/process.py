"""Name a process, so that others on the same machine can find out whether it still exists."""

import os
import uuid
from contextlib import suppress
from functools import cache
from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@cache
def _elsewhere() -> str:
    return f"elsewhere/{uuid.uuid4().hex}"


def own_identity() -> str:
    """A name of this process that no other process has had; where /proc is missing, it only tells processes apart."""
    started = _start_time(os.getpid())
    return _elsewhere() if started is None else f"{_machine()}/{os.getpid()}/{started}"


def is_dead(identity: str) -> bool:
    """Whether the process was one of this machine, or of this container, and has ended; False if that is unknown."""
    machine, _, rest = identity.partition("/")
    pid, _, started = rest.partition("/")
    if not pid.isdigit() or _start_time(os.getpid()) is None or machine != _machine():
        return False
    try:
        # A process of another user exists as well.
        with suppress(PermissionError):
            os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    return _start_time(int(pid)) not in (None, started)


def _machine() -> str:
    """This boot of the machine, and the namespace in which the number of a process means something."""
    namespace = os.readlink("/proc/self/ns/pid").strip("pid:[]")
    return f"{BOOT_ID.read_text().strip()}-{namespace}"


def _start_time(pid: int) -> str | None:
    """When a process started, in clock ticks since boot; "ended" if only its exit status is left; None if unknown."""
    try:
        # The name of the program is in parentheses, and may contain any character.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        _machine()
    except OSError:
        return None
    return "ended" if fields[0] in "ZX" else fields[19]
