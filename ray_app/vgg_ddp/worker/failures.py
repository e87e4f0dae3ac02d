"""Choose the failure to show when several workers fail, and print each failure as it happens."""

import logging
import sys
import traceback
from typing import Any

import ray.train
from ray.train import TrainingFailedError, UserCallback

from vgg_ddp.job import Outcome
from vgg_ddp.worker.hangs import is_consequence

# The key of a report that says how the run ended.
OUTCOME = "outcome"


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


class DivergedError(Exception):
    """Ends a run in Ray Train's controller."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome)
        self.outcome = outcome

    def __str__(self) -> str:
        return self.outcome.message


def report_diverged(outcome: Outcome) -> None:
    """Make Ray Train count the run as failed, too, without restarting the workers. A collective.

    A worker that raised an exception would be restarted. A callback that does so, as `FailureReporter` after this
    report, ends the run.
    """
    ray.train.report({OUTCOME: outcome})


def diverged_outcome(error: TrainingFailedError) -> Outcome | None:
    """The outcome of a run that ended with `report_diverged`; None if it failed for another reason."""
    cause = getattr(error, "controller_failure", None)
    return cause.outcome if isinstance(cause, DivergedError) else None


class FailureReporter(UserCallback):  # type: ignore[misc]
    """Prints each failure as it happens, and ends a run that diverged; runs in Ray Train's controller.

    Without it, a bug would be reported only after all restarts have failed.
    """

    def __init__(self, max_failures: int) -> None:
        self._max_failures = max_failures
        self._failures = 0

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:  # noqa: ARG002
        """Raise an exception if the run diverged."""
        if outcome := metrics[0].get(OUTCOME):
            # Ray would print the exception with its traceback, before it ends this process.
            logging.disable(logging.ERROR)
            raise DivergedError(outcome)

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
