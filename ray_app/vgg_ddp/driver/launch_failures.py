"""Why Ray's autoscaler cannot start a machine: it says so only in a log file on the head node."""

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray.exceptions import RayError
from ray.util.state import get_log
from ray.util.state.exception import RayStateApiException

LOG_FILE, LAST_LINES = "monitor.log", 200
SECONDS_BETWEEN_CHECKS = 30.0
# The same reason is printed again after this time, for example when the next spot worker cannot be replaced.
SECONDS_BETWEEN_REPEATS = 900.0
FAILURE = re.compile(r"Failed to launch \d+ nodes of type (\S+): (?:Node Launch Exception \((\w+)\): )?(.*)")
HEAD = "node:__internal_head__"


@contextmanager
def printed_launch_failures() -> Iterator[None]:
    """Print a note, in this context, when a cloud refuses to start a machine for this cluster."""
    ended = threading.Event()
    thread = threading.Thread(target=_watch, args=(ended,), name="launch failures", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()


def _watch(ended: threading.Event) -> None:
    printed: dict[str, float] = {}
    # Failures before the run are not this run's.
    seen = set(_failures())
    while not ended.wait(SECONDS_BETWEEN_CHECKS):
        failures = _failures()
        for line, reason in failures.items():
            now = time.monotonic()
            if line not in seen and now - printed.get(reason, -SECONDS_BETWEEN_REPEATS) >= SECONDS_BETWEEN_REPEATS:
                printed[reason] = now
                print(f"NOTE: Ray could not start a machine, and retries: {reason}", flush=True)
        seen = set(failures)


def _failures() -> dict[str, str]:
    """The failures among the last lines of the log: reason by line, which starts with the time."""
    try:
        (head,) = [node["NodeID"] for node in ray.nodes() if node["Alive"] and HEAD in node["Resources"]]
        text = "".join(get_log(node_id=head, filename=LOG_FILE, tail=LAST_LINES, errors="replace"))
    except (RayError, RayStateApiException, ValueError, OSError):
        # A cluster without an autoscaler, or a head that is busy.
        return {}
    return reasons(text)


def reasons(log: str) -> dict[str, str]:
    """The node type and the reason in the lines of a log, by line."""
    found = {line: FAILURE.search(line) for line in log.splitlines()}
    return {line: ": ".join(filter(None, match.groups())) for line, match in found.items() if match}
