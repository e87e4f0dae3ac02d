"""Follow a sweep: record each change of a trial, and print it as a line of the table."""

import math
import threading
from typing import Any

from ray import tune

from vgg_ddp.sweep.config import METRIC
from vgg_ddp.sweep.table import Table
from vgg_ddp.sweep.trials import State, Trial, Trials

# How a run ended, as `RunResult.ended` says, and the state of its trial.
ENDED: dict[str, State] = {"finished": "finished", "diverged": "diverged"}


class StoppedSweepError(BaseException):
    """Ends Tune's loop. Not an Exception, so that no handler swallows it."""


class Progress(tune.Callback):  # type: ignore[misc]
    """Ray Tune calls it for every change of a trial, with arguments by name."""

    def __init__(self, trials: Trials, table: Table, stopping: threading.Event, keeps_best: bool) -> None:
        self._trials = trials
        self._table = table
        self._stopping = stopping
        # Whether a run's model is that of its best epoch, not of the last one.
        self._keeps_best = keeps_best
        # How the trials ended that have said so.
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
        self._change(self._find(trial), "waiting", "its process died: it is restarted")

    def on_trial_result(self, *, trial: Any, result: dict[str, Any], **_: Any) -> None:
        ours = self._find(trial)
        if result["epoch"]:
            is_better = not ours.accuracy > result[METRIC]
            ours.epoch = int(result["epoch"])
            ours.accuracy = result[METRIC] if is_better or not self._keeps_best else ours.accuracy
        if "ended" in result:
            self._ended[ours.name] = ENDED.get(result["ended"], "failed")
            ours.message = result["message"]
        elif not math.isnan(ours.accuracy):
            print(self._table.row(ours), flush=True)

    def on_trial_complete(self, *, trial: Any, **_: Any) -> None:
        # A trial that the scheduler stops does not say how it ended.
        ours = self._find(trial)
        self._change(ours, self._ended.get(ours.name, "stopped early"), ours.message)

    def on_trial_error(self, *, trial: Any, **_: Any) -> None:
        self._change(self._find(trial), "failed", "its process died too often")

    def _find(self, trial: Any) -> Trial:
        return self._trials.named(trial.config["name"])

    def _change(self, trial: Trial, state: State, message: str) -> None:
        trial.state, trial.message = state, message
        self._trials.save()
        print(self._table.row(trial), flush=True)
