"""Sweeps without Ray: their settings, the plan of their trials, and their end."""

import csv
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from support.command import TUNE
from vgg_ddp.config import TrainConfig
from vgg_ddp.flags import UsageError, parse_flags
from vgg_ddp.run.files import COLUMNS, write_config
from vgg_ddp.run.lease import Lease, LeaseLostError
from vgg_ddp.run.runs import open_run
from vgg_ddp.run.storage import Folder
from vgg_ddp.run.versions import VersionedFile
from vgg_ddp.sweep.capacity import count_workers
from vgg_ddp.sweep.conclude import training_command
from vgg_ddp.sweep.config import METRIC, SweepConfig
from vgg_ddp.sweep.launch import call_until_signal
from vgg_ddp.sweep.sweeps import Sweep, open_sweep
from vgg_ddp.sweep.trials import Trials
from vgg_ddp.sweep.tuner import grace_period


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def opened(*arguments: str) -> Sweep:
    return open_sweep(parse_flags(SweepConfig, arguments, "tune"), arguments)


def started(*arguments: str) -> tuple[Sweep, Trials]:
    """A sweep whose command has written its settings and trials."""
    sweep = opened(*arguments)
    sweep.save()
    trials = sweep.plan()
    trials.save()
    return sweep, trials


BAD_INPUT = {
    "": "expected the settings to tune, as in lr=0.02:0.2",
    "lr=0.1:0.2 --num-workers 0": "--num-workers 0: expected at least 1",
    "lr=0.1:0.2 --min-workers 1": "--min-workers does not apply to a sweep",
    "lr=0.1:0.2 --validation-fraction 0": "--validation-fraction 0.0: expected more than 0",
    "lr=0.1:0.2 --num-samples 0": "--num-samples 0: expected a positive number.",
    "lr=0.1:0.2 --search grid": "--search grid: lr is a range; expected choices",
    "lr=0.1,0.2 --search grid --num-samples 3": "--num-samples does not apply to --search grid",
    "lr=0.1:0.2 --resume none": "--resume none: no sweep of that name in --storage-path",
    "lr=0.1:0.2 --run-name a-run": "is a run, not a sweep",
    "--resume a-run": "--resume a-run: a-run is a run; resume it with main.py.",
    "lr=0.1:0.2 --storage-path foo://x": "--storage-path foo://x cannot be read: ",
    "lr=0.02:0.2 --lr 0.1": "--lr 0.1: lr is also in the search space; remove one of them.",
    "batch-size=1:512 --num-workers 2": "batch-size=1:512: most of these do not split evenly over 2 workers",
    "lr=0.1:0.2 --erly-stopping": "unknown flag --erly-stopping. Did you mean --early-stopping?",
}


@pytest.mark.parametrize("arguments", BAD_INPUT)
def test_bad_input_is_refused(arguments: str) -> None:
    write_config(Folder.at("runs/a-run"), {})
    with pytest.raises(UsageError) as caught:
        opened(*arguments.split())
    assert BAD_INPUT[arguments] in str(caught.value)


def test_bad_input_of_the_command_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    command = [sys.executable, str(TUNE), "lr=0.2:0.1"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "error: lr=0.2:0.1: expected LOW:HIGH with LOW below HIGH.\n"
    assert not list(tmp_path.iterdir())


def test_grid_has_every_combination_once() -> None:
    _, trials = started("lr=0.1,0.2", "recipe=fast,classic", "--search", "grid", "--run-name", "s")
    points = [(trial.name, trial.point["lr"], trial.point["recipe"]) for trial in trials.all]
    assert points == [
        ("s-001", 0.1, "fast"),
        ("s-002", 0.1, "classic"),
        ("s-003", 0.2, "fast"),
        ("s-004", 0.2, "classic"),
    ]


def test_resumed_sweep_repeats_only_trials_that_are_not_done() -> None:
    _, trials = started("lr=0.1:0.2", "cutout=0,4,8", "--num-samples", "5", "--run-name", "s")
    points = [trial.point for trial in trials.all]
    for trial, state in zip(trials.all, ("finished", "stopped early", "diverged", "failed", "running"), strict=True):
        trial.state, trial.epoch, trial.accuracy = state, 3, 0.1 + 0.2
    trials.save()
    again = opened("--resume", "s", "--num-samples", "7").plan()
    assert [trial.state for trial in again.all] == ["finished", "stopped early", "diverged", *4 * ["waiting"]]
    assert [trial.point for trial in again.all[:5]] == points
    assert [trial.accuracy for trial in again.all[:3]] == 3 * [0.1 + 0.2]
    with (Path("runs") / "s" / "trials.csv").open() as file:
        row = next(csv.DictReader(file))
    assert (row["trial"], row["state"], row["lr"]) == ("s-001", "finished", str(points[0]["lr"]))


def test_resumed_sweep_keeps_its_settings() -> None:
    first, _ = started("lr=0.1:0.2", "--run-name", "s", "--epochs", "3", "--seed", "4")
    again = opened("--resume", "s", "--max-concurrent", "2")
    assert (again.exists, again.space, again.config.epochs) == (True, first.space, 3)
    assert again.config.max_concurrent == 2
    assert opened("lr=0.1:0.2", "--run-name", "s", "--epochs", "3").config.seed == 4
    with pytest.raises(UsageError, match=r"--epochs 5: sweep s was started with --epochs 3; omit the flag"):
        opened("--resume", "s", "--epochs", "5")
    with pytest.raises(UsageError, match=r"^lr=0.1:0.3: sweep s was started with lr=0.1:0.2; omit the search space"):
        opened("lr=0.1:0.3", "--run-name", "s")


def test_fewer_samples_skip_waiting_trials_until_there_are_more_again() -> None:
    _, trials = started("lr=0.1:0.2", "--num-samples", "5", "--run-name", "s")
    trials.all[4].state = "finished"
    trials.save()
    fewer = opened("--resume", "s", "--num-samples", "2").plan()
    assert [trial.state for trial in fewer.all] == ["waiting", "waiting", "skipped", "skipped", "finished"]
    assert [trial.is_waiting for trial in fewer.all] == [True, True, False, False, False]
    fewer.save()
    more = opened("--resume", "s", "--num-samples", "6").plan()
    assert [trial.state for trial in more.all] == [*4 * ["waiting"], "finished", "waiting"]
    assert [trial.point for trial in more.all[:5]] == [trial.point for trial in trials.all]


def test_resumed_sweep_finds_initial_weights_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = started("init_from=runs/a,s3://bucket/b", "--search", "grid", "--run-name", "s")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = opened("--resume", "s", "--storage-path", str(tmp_path / "runs"))
    assert again.space == first.space
    assert [trial.point["init_from"] for trial in again.plan().all] == [str(tmp_path / "runs/a"), "s3://bucket/b"]


def test_sweep_is_not_resumed_as_a_run() -> None:
    started("lr=0.1:0.2", "--run-name", "s")
    for arguments, message in (
        (("--resume", "s"), "--resume s: s is a sweep; resume it with tune.py."),
        (("--run-name", "s"), "is a sweep, not a run; use another name."),
    ):
        with pytest.raises(UsageError) as caught:
            open_run(parse_flags(TrainConfig, arguments, "main"), arguments)
        assert str(caught.value).endswith(message)


@pytest.mark.parametrize(
    "content", ["trial,lr\ns-001,0.1\n", "trial,lr,state,epoch,validation_accuracy,message\ns-001,x,,,,\n"]
)
def test_damaged_record_of_the_trials_is_not_taken_for_a_new_sweep(content: str) -> None:
    sweep, _ = started("lr=0.1:0.2", "--run-name", "s")
    (Path("runs") / "s" / "trials.csv").write_text(content)
    with pytest.raises(UsageError, match=r"trials\.csv is damaged"):
        sweep.plan()


def test_best_trial_is_the_finished_one_with_the_highest_accuracy() -> None:
    _, trials = started("lr=0.1:0.2", "--num-samples", "4", "--run-name", "s")
    assert trials.best() is None
    states = (("finished", 0.5), ("finished", 0.7), ("stopped early", 0.9), ("finished", float("nan")))
    for trial, (state, accuracy) in zip(trials.all, states, strict=True):
        trial.state, trial.accuracy = state, accuracy  # type: ignore[assignment]
    best = trials.best()
    assert best and best.name == "s-002"


def test_training_command_has_the_settings_of_the_trial_and_all_images() -> None:
    flags = ("--epochs", "3", "--data", "sample", "--num-workers", "2", "--validation-fraction", "0.2")
    sweep, trials = started("lr=0.1,0.2", "fast-convolutions=true,false", "--search", "grid", *flags)
    command = training_command(sweep, trials.all[-1])
    expected = "python ray_app/main.py --num-workers 2 --epochs 3 --lr 0.2 --no-fast-convolutions --data sample"
    assert command == expected


def test_trials_are_only_as_many_as_fit() -> None:
    nodes = [{"CPU": 4.0}, {"CPU": 8.0, "GPU": 2.0}]
    assert count_workers(nodes, {"CPU": 1.0}) == 12
    assert count_workers(nodes, {"CPU": 0.3333}) == 36
    assert count_workers(nodes, {"CPU": 1.0}, part_of_cpus=0.5) == 6
    assert count_workers(nodes, {"CPU": 1.0, "GPU": 1.0}) == 2
    assert count_workers([], {"CPU": 1.0}) == 0


@pytest.mark.parametrize(("epochs", "expected"), [(2, 1), (4, 1), (15, 4), (100, 25)])
def test_trials_have_a_quarter_of_their_epochs_before_they_are_compared(epochs: int, expected: int) -> None:
    assert grace_period(SweepConfig(epochs=epochs)) == expected


def test_trials_are_compared_by_a_column_of_the_metrics() -> None:
    assert METRIC in COLUMNS


def test_sweep_that_another_command_continues_is_stopped(tmp_path: Path) -> None:
    lease = Lease(VersionedFile(str(tmp_path / "lease")), "sweep")
    stopped = []

    def run_trials(stopping: threading.Event) -> None:
        lease.lost = "another command has taken over"
        stopped.append(stopping.wait(30))

    with pytest.raises(LeaseLostError, match="another command has taken over"):
        call_until_signal(run_trials, replace(Folder.at(str(tmp_path)), lease=lease))
    assert stopped == [True]
