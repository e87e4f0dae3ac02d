"""Follow a sweep: record each change of a trial, and print it as a line of the table."""

import math
import threading
from pathlib import Path
from typing import Any

from ray import cloudpickle, tune
from ray.exceptions import RayActorError

from vgg_ddp.run.notes import noted, reason
from vgg_ddp.sweep.config import METRIC
from vgg_ddp.sweep.table import Table
from vgg_ddp.sweep.trials import State, Trial, Trials

# How a run ended, as `RunResult.ended` says, and the state of its trial.
ENDED: dict[str, State] = {"finished": "finished", "diverged": "diverged"}


class StoppedSweepError(BaseException):
    """Ends Tune's loop. Not an Exception, so that no handler swallows it."""


class Progress(tune.Callback):  # type: ignore[misc]
    """Ray Tune calls it for every change of a trial, with arguments by name."""

    def __init__(self, trials: Trials, table: Table, stopping: threading.Event) -> None:
        self._trials = trials
        self._table = table
        self._stopping = stopping
        # The final states that trials have reported.
        self._ended: dict[str, State] = {}

    def __getstate__(self) -> dict[str, Any]:
        """For Tune's records, which are not used."""
        return {}

    def on_step_begin(self, **_: Any) -> None:
        """Several times per second."""
        if self._stopping.is_set():
            raise StoppedSweepError

    def on_trial_start(self, *, trial: Any, **_: Any) -> None:
        self._change(self._find(trial), "running", "")

    def on_trial_recover(self, *, trial: Any, **_: Any) -> None:
        error = describe_error(trial)
        message = f"{error}: it is restarted" if error else "its process died: it is restarted"
        self._change(self._find(trial), "waiting", message)

    def on_trial_result(self, *, trial: Any, result: dict[str, Any], **_: Any) -> None:
        ours = self._find(trial)
        has_ended = "ended" in result
        # A trial that is resumed reports its earlier epochs again.
        is_new = result["epoch"] > ours.epoch
        if is_new or (has_ended and result["epoch"]):
            ours.epoch, ours.accuracy = int(result["epoch"]), result[METRIC]
        if has_ended:
            self._ended[ours.name] = ENDED.get(result["ended"], "failed")
            ours.message = result["message"]
        elif is_new and not math.isnan(ours.accuracy):
            print(self._table.row(ours), flush=True)

    def on_trial_complete(self, *, trial: Any, **_: Any) -> None:
        # A trial that the scheduler stops does not say how it ended.
        ours = self._find(trial)
        self._change(ours, self._ended.get(ours.name, "stopped early"), ours.message)

    def on_trial_error(self, *, trial: Any, **_: Any) -> None:
        self._change(self._find(trial), "failed", describe_error(trial) or "its process died too often")

    def _find(self, trial: Any) -> Trial:
        return self._trials.named(trial.config["name"])

    def _change(self, trial: Trial, state: State, message: str) -> None:
        trial.state, trial.message = state, message
        self._trials.save()
        print(self._table.row(trial), flush=True)


def describe_error(trial: Any) -> str:
    """The newest error in the process of a trial, as Ray Tune has recorded it; empty if the process died."""
    with noted("the error of a trial cannot be read"):
        if trial.pickled_error_file:
            error = cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
            # What a process raised is the cause of Ray's own error.
            error = getattr(error, "cause", error)
            return "" if isinstance(error, RayActorError) else reason(error)
    return "an error that was not recorded"
