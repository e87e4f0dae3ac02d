"""The driver's checks and decisions before it starts the workers."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from support.command import ROOT
from vgg_ddp.config import TrainConfig
from vgg_ddp.data.dataset import Dataset, Split
from vgg_ddp.driver import launch as launching
from vgg_ddp.driver.attempt import with_batch_size
from vgg_ddp.driver.launch import launch
from vgg_ddp.flags import UsageError
from vgg_ddp.observe.tensorboard import EVENTS_FILE, EventFile
from vgg_ddp.run.curves import write_curves
from vgg_ddp.run.files import MODEL_FILE, Row, write_config, write_metrics, write_progress
from vgg_ddp.run.runs import Run, require_writable
from vgg_ddp.run.storage import Folder


def test_driver_imports_ray_only_after_it_has_prepared_the_environment() -> None:
    # Ray reads some settings on import: without them, its processes would not listen only on loopback.
    program = "import sys, vgg_ddp.driver.launch; print({'ray', 'torch'} & set(sys.modules))"
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, cwd=ROOT / "ray_app", capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout == "set()\n"


def make_dataset(train_images: int) -> Dataset:
    train = Split(np.zeros((train_images, 32, 32, 3), np.uint8), np.zeros(train_images, np.int64))
    return Dataset("blank", train, train, ("only",), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def test_batch_may_not_exceed_the_training_images(run: Folder) -> None:
    given = Run(TrainConfig(batch_size=8), "run", run, exists=False)
    assert with_batch_size(given, make_dataset(8), 4) == given
    with pytest.raises(UsageError, match="--batch-size 8: there are only 7 training images"):
        with_batch_size(given, make_dataset(7), 4)


def test_batch_is_made_of_images_that_are_not_for_validation(run: Folder) -> None:
    dataset = make_dataset(8)
    dataset = replace(dataset, validation=dataset.train)
    given = Run(TrainConfig(batch_size=9), "run", run, exists=False)
    with pytest.raises(UsageError, match="--batch-size 9: there are only 8 training images left after the validation"):
        with_batch_size(given, dataset, 1)
    unset = Run(TrainConfig(num_workers=1), "run", run, exists=False)
    dataset = replace(make_dataset(1000), validation=make_dataset(4000).train)
    assert with_batch_size(unset, dataset, 1).config.batch_size == 100


@pytest.mark.parametrize(
    ("num_train", "num_workers", "expected"),
    [(50_000, 1, 512), (50_000, 4, 512), (50_000, 3, 510), (50_000, 600, 1200), (1000, 4, 100), (45, 3, 6), (8, 4, 8)],
)
def test_default_batch_splits_evenly_into_at_least_ten_steps(
    run: Folder, num_train: int, num_workers: int, expected: int
) -> None:
    unset = Run(TrainConfig(num_workers=num_workers), "run", run, exists=False)
    assert with_batch_size(unset, make_dataset(num_train), num_workers).config.batch_size == expected


def test_default_batch_comes_from_the_recipe(run: Folder) -> None:
    unset = Run(TrainConfig(num_workers=3, recipe="classic"), "run", run, exists=False)
    assert with_batch_size(unset, make_dataset(50_000), 3).config.batch_size == 126


def test_more_workers_than_images_are_rejected(run: Folder) -> None:
    unset = Run(TrainConfig(num_workers=9), "run", run, exists=False)
    with pytest.raises(
        UsageError, match=r"9 worker\(s\) need a batch of 18 images, but there are only 7 training images"
    ):
        with_batch_size(unset, make_dataset(7), 9)


def test_ray_workers_are_refused_under_torchrun(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with pytest.raises(UsageError, match="--num-workers 4: torchrun has started the workers; omit this flag"):
        launch(TrainConfig(num_workers=4, storage_path=str(tmp_path)), [], 0.0)


def test_finished_run_is_not_trained_again(
    run: Folder, make_rows: Callable[[int], list[Row]], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--run-name", "run", "--epochs", "2", "--storage-path", str(Path(run.path).parent)]
    config = TrainConfig(run_name="run", epochs=2, storage_path=str(Path(run.path).parent))
    write_config(run, config.to_dict())
    write_metrics(run, make_rows(2))
    run.write("model.safetensors", b"")
    EventFile(run).write(make_rows(2))
    write_curves(run, make_rows(2), "run")
    files, events = run.names(), run.read(EVENTS_FILE)
    result = launch(config, arguments, 0.0)
    assert (result.ended, result.rows, result.model) == ("finished", make_rows(2), f"{run.path}/model.safetensors")
    printed = capsys.readouterr().out
    assert "Run run is already finished" in printed
    assert f"test accuracy      {make_rows(2)[1]['test_accuracy']:.2%}" in printed
    assert run.names() == files

    # What a command leaves if it is killed shortly before its workers finish: it may have seen only one of the epochs.
    EventFile(run).write(make_rows(1))
    run.delete("curves.png")
    write_progress(run, {"step": 20})
    lock = Path(run.path).parent / ".running-run"
    lock.touch()
    launch(config, arguments, 0.0)
    assert (run.names(), run.read(EVENTS_FILE)) == (files, events)
    assert not lock.exists()


@pytest.mark.parametrize("data", ["no/such/folder", "nosuch://bucket"])
def test_missing_data_is_reported_before_a_run_folder_is_created(tmp_path: Path, data: str) -> None:
    config = TrainConfig(data=data, storage_path=str(tmp_path / "runs"))
    with pytest.raises(UsageError, match=f"--data .*{data}"):
        launch(config, [], 0.0)
    assert not (tmp_path / "runs").exists()


def test_run_that_another_command_finishes_in_the_meantime_is_not_trained_again(
    data_folder: Path,
    make_rows: Callable[[int], list[Row]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    config = TrainConfig(epochs=2, run_name="run", storage_path=str(tmp_path / "runs"), data=str(data_folder))

    def finish(run: Run) -> None:
        """The other command, right before this one locks the run."""
        require_writable(run)
        write_config(run.folder, config.to_dict())
        write_metrics(run.folder, make_rows(2))
        run.folder.write(MODEL_FILE, b"")

    monkeypatch.setattr(launching, "require_writable", finish)
    assert launch(config, [], 0.0).ended == "finished"
    assert "Run run is already finished: there is nothing to train." in capsys.readouterr().out
