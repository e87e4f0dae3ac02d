"""What the table and the scheduler learn from a trial. Without a Ray cluster."""

import math
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray import cloudpickle
from ray.exceptions import ActorDiedError, RayTaskError

from vgg_ddp.config import TrainConfig
from vgg_ddp.result import RunResult
from vgg_ddp.run.files import COLUMNS, Row
from vgg_ddp.run.storage import Folder
from vgg_ddp.search_space import Choice
from vgg_ddp.sweep.config import METRIC
from vgg_ddp.sweep.progress import Progress
from vgg_ddp.sweep.table import Table
from vgg_ddp.sweep.trial import last_report
from vgg_ddp.sweep.trials import Trials

SPACE = (Choice("lr", (0.1, 0.2)),)


def rows_of(*accuracies: float) -> list[Row]:
    return [
        dict.fromkeys(COLUMNS, math.nan) | {"epoch": epoch, METRIC: accuracy}
        for epoch, accuracy in enumerate(accuracies, start=1)
    ]


class Sweep:
    """A sweep of two trials, whose first one reports."""

    def __init__(self, folder: Path) -> None:
        self.trials = Trials(Folder.at(str(folder)), "s", SPACE)
        self.ours = self.trials.add({"lr": 0.1})
        self.trials.add({"lr": 0.2})
        self.progress = Progress(self.trials, Table("s", 3, SPACE), threading.Event())
        self.trial = SimpleNamespace(config={"name": "s-001"}, pickled_error_file=None)

    def report(self, *results: dict[str, Any]) -> None:
        for result in results:
            self.progress.on_trial_result(trial=self.trial, result=result)

    def record(self, folder: Path, error: Exception) -> None:
        """Record an error as Ray Tune does."""
        path = folder / "error.pkl"
        path.write_bytes(cloudpickle.dumps(error))
        self.trial.pickled_error_file = str(path)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, 0.5),
        ({"keep_best": True}, 0.9),
        ({"keep_best": True, "half_size_epochs": 1, "image_size": 64}, 0.6),
    ],
)
def test_trial_is_judged_by_the_weights_that_its_run_keeps(
    tmp_path: Path, flags: dict[str, Any], expected: float
) -> None:
    rows, config = rows_of(0.9, 0.6, 0.5), TrainConfig(epochs=3, validation_fraction=0.1, **flags)
    last = last_report(RunResult("s-001", "s/s-001", "finished", rows), config)
    assert (last["epoch"], last[METRIC], last["ended"]) == (3, expected, "finished")
    sweep = Sweep(tmp_path)
    sweep.report(*rows, last)
    sweep.progress.on_trial_complete(trial=sweep.trial)
    assert (sweep.ours.state, sweep.ours.epoch, sweep.ours.accuracy) == ("finished", 3, expected)
    assert sweep.trials.best() is sweep.ours


def test_epochs_that_a_resumed_trial_reports_again_are_printed_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = Sweep(tmp_path)
    rows = rows_of(0.4, 0.5, 0.6)
    sweep.report(*rows[:2])
    sweep.report(*rows)
    assert [line.split()[2] for line in capsys.readouterr().out.splitlines()] == ["1/3", "2/3", "3/3"]
    assert sweep.ours.accuracy == 0.6


def test_run_that_fails_before_its_first_epoch_keeps_its_reason(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    sweep.report({"epoch": 0, METRIC: math.nan, "ended": "failed", "message": "no space left"})
    sweep.progress.on_trial_complete(trial=sweep.trial)
    assert (sweep.ours.state, sweep.ours.epoch, sweep.ours.message) == ("failed", 0, "no space left")


def test_only_a_dead_process_is_said_to_have_died(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    sweep.record(tmp_path, ActorDiedError())
    sweep.progress.on_trial_recover(trial=sweep.trial)
    assert (sweep.ours.state, sweep.ours.message) == ("waiting", "its process died: it is restarted")
    sweep.progress.on_trial_error(trial=sweep.trial)
    assert (sweep.ours.state, sweep.ours.message) == ("failed", "its process died too often")
    sweep.record(tmp_path, RayTaskError("train", "Traceback", ImportError("no module named x")))
    sweep.progress.on_trial_error(trial=sweep.trial)
    assert (sweep.ours.state, sweep.ours.message) == ("failed", "ImportError: no module named x")
