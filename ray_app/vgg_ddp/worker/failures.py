"""Choose the failure to show when several workers fail, and print each failure as it happens."""

import sys
import traceback
from typing import Any

from ray.train import UserCallback

from vgg_ddp.worker.hangs import is_consequence


def first_cause(failures: dict[int, Exception]) -> tuple[int, Exception]:
    """Rank and exception of the failure that caused the others; the lowest rank's if that is unclear."""
    causes = [rank for rank, failure in failures.items() if not is_consequence(failure)]
    rank = min(causes or failures)
    return rank, failures[rank]


def describe(failures: dict[int, Exception]) -> str:
    """The first cause, with its traceback."""
    rank, failure = first_cause(failures)
    others = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
    return f"worker {rank}{others} failed:\n{''.join(traceback.format_exception(failure))}"


class FailureReporter(UserCallback):  # type: ignore[misc]
    """Prints each failure as it happens; runs in Ray Train's controller.

    Without it, a bug would be reported only after all restarts have failed.
    """

    def __init__(self, max_failures: int) -> None:
        self._max_failures = max_failures
        self._failures = 0

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:  # noqa: ARG002
        """Print the failure; Ray forwards it to the driver's terminal."""
        self._failures += 1
        restart = f"restart {self._failures} of at most {self._max_failures}"
        then = (
            restart
            if self._failures <= self._max_failures
            else f"no restarts left (--max-failures {self._max_failures})"
        )
        print(f"{describe(worker_exceptions)}{then}", file=sys.stderr, flush=True)
