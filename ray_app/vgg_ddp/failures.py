"""Which of several workers' failures to show, and showing each when it happens."""

import re
import sys
import traceback
from typing import Any

from ray.train import UserCallback

# What the other ranks say once one is gone: true, but not the cause.
_CONSEQUENCE = re.compile(r"Connection (closed|reset) by peer|gloo|NCCL|Broken pipe|Application timeout", re.IGNORECASE)


def is_consequence(failure: Exception) -> bool:
    """Whether a worker failed because another rank did not take part any more."""
    return bool(_CONSEQUENCE.search(str(failure)))


def first_cause(failures: dict[int, Exception]) -> tuple[int, Exception]:
    """Rank and exception of the failure that is not a mere consequence of another, else of the lowest rank."""
    causes = [rank for rank, failure in failures.items() if not is_consequence(failure)]
    rank = min(causes or failures)
    return rank, failures[rank]


def describe(failures: dict[int, Exception]) -> str:
    """The first cause with its traceback."""
    rank, failure = first_cause(failures)
    others = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
    return f"worker {rank}{others} failed:\n{''.join(traceback.format_exception(failure))}"


class FailureReporter(UserCallback):  # type: ignore[misc]
    """Tells of each failure when it happens; lives in Ray Train's controller.

    Without it, a fault in the code would show only after all restarts have met it.
    """

    def __init__(self, max_failures: int) -> None:
        self._max_failures = max_failures
        self._failures = 0

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:  # noqa: ARG002
        """Print the failure; Ray brings it to the driver's terminal."""
        self._failures += 1
        restart = f"restart {self._failures} of at most {self._max_failures}"
        then = restart if self._failures <= self._max_failures else f"no restart after {self._max_failures}"
        print(f"{describe(worker_exceptions)}{then}", file=sys.stderr, flush=True)
