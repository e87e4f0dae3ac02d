"""Runs with a validation split, started from the command line: which weights they keep, and when they test them."""

import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from support.command import PATIENCE, PREDICT, count_checkpoints, main_command, run_main, started, wait_until
from support.parquet_tables import table
from vgg_ddp.data.dataset import load_dataset
from vgg_ddp.data.source import find_source
from vgg_ddp.run.files import Row, read_metrics
from vgg_ddp.run.storage import Folder
from vgg_ddp.weights.model_file import load_classifier

pytestmark = pytest.mark.slow

FLAGS: tuple[object, ...] = ("--recipe", "classic", "--precision", "fp32", "--lr", 0.02, "--batch-size", 24)
FLAGS += ("--validation-fraction", 0.2, "--keep-best")
# A checkpoint after every step.
LOCAL: tuple[object, ...] = ("--num-workers", 0, "--epochs", 3, "--checkpoint-every-seconds", 0.01)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 training images of one class and 40 test images of two.

    A model soon takes all images for the first class: then all epochs are equally good, and the first one is kept.
    """
    folder = tmp_path_factory.mktemp("data")
    pq.write_table(table(120, labels=[0] * 120, names=("ant", "bee")), folder / "train.parquet", row_group_size=50)
    pq.write_table(table(40, labels=[0, 1, 1, 1] * 10, names=("ant", "bee")), folder / "test.parquet")
    return folder


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an undisturbed run."""
    cwd = tmp_path_factory.mktemp("undisturbed")
    result = run_main("--data", data, "--run-name", "run", *LOCAL, *FLAGS, cwd=cwd)
    assert result.returncode == 0 and result.stderr == "", result.stderr
    assert "96 training and 40 test images, 24 validation images, 2 classes" in result.stdout
    for epoch in (1, 2, 3):
        assert re.search(rf"epoch {epoch}/3  loss .* validation +[0-9.]+%  lr", result.stdout), result.stdout
    # The test accuracy is printed once for its epoch, and in the summary.
    assert len(re.findall(r"epoch \d/3  test [0-9.]+% with the weights of this epoch", result.stdout)) == 1
    assert len(re.findall(r"test accuracy      [0-9.]+% \(weights of epoch \d\)", result.stdout)) == 1
    return cwd / "runs/run"


def rows_of(run: Path) -> list[Row]:
    return read_metrics(Folder.at(str(run)))


def epochs_tested(rows: list[Row]) -> list[float]:
    return [row["epoch"] for row in rows if not math.isnan(row["test_accuracy"])]


def results(run: Path) -> list[Row]:
    """The metrics that do not depend on the speed."""
    timed = ("time", "seconds", "images_per_second")
    return [{name: value for name, value in row.items() if name not in timed} for row in rows_of(run)]


def model(run: Path) -> bytes:
    return (run / "model.safetensors").read_bytes()


def test_weights_of_the_best_epoch_are_kept_and_tested_once(undisturbed: Path, data: Path) -> None:
    rows = rows_of(undisturbed)
    best = max(rows, key=lambda row: row["validation_accuracy"])
    assert best["epoch"] < 3 and epochs_tested(rows) == [best["epoch"]]
    state = torch.load(max(undisturbed.glob("checkpoint_*/state.pt")), weights_only=True)
    kept = load_file(undisturbed / "model.safetensors")
    for name, parameter in state["best"]["parameters"].items():
        assert torch.equal(kept[name], parameter)
    last = state["replica"]["parameters"]
    assert not torch.equal(kept["classifier.weight"], last["classifier.weight"])
    test = load_dataset(find_source(str(data), ""), 32).test
    probabilities = load_classifier(str(undisturbed)).probabilities(test.images)
    loss = -probabilities[range(40), torch.from_numpy(test.labels)].log().mean()
    assert best["test_loss"] == pytest.approx(float(loss), rel=1e-3)
    command = [sys.executable, str(PREDICT), str(undisturbed), "--data", str(data)]
    predicted = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert f"accuracy {best['test_accuracy']:.2%} " in predicted.stdout, predicted.stderr


def test_killed_run_resumes_to_the_same_best_weights(undisturbed: Path, data: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs/run"
    with started(tmp_path, main_command("--data", data, "--run-name", "run", *LOCAL, *FLAGS)) as process:
        # The first epoch is the best: the process has forgotten it when it resumes.
        wait_until(lambda: count_checkpoints(run) >= 1 and len(rows_of(run)) >= 2)
        process.kill()
        process.wait()
    assert not (run / "model.safetensors").exists()
    resumed = run_main("--resume", "run", cwd=tmp_path)
    assert resumed.returncode == 0 and "Resumed at step" in resumed.stdout, resumed.stderr
    assert model(run) == model(undisturbed)
    assert results(run) == results(undisturbed)


def test_run_killed_before_its_test_is_tested_when_it_resumes_and_again_after_more_epochs(
    undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "runs/run"
    shutil.copytree(undisturbed, run)
    # What the last checkpoint leaves behind.
    (run / "model.safetensors").unlink()
    metrics = (run / "metrics.csv").read_text()
    (tested,) = re.findall(r"^(?!.*,nan,nan,)\d.*$", metrics, re.MULTILINE)
    cells = tested.split(",")
    cells[6:8] = ["nan", "nan"]
    (run / "metrics.csv").write_text(metrics.replace(tested, ",".join(cells)))
    assert epochs_tested(rows_of(run)) == []
    resumed = run_main("--resume", "run", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert model(run) == model(undisturbed) and results(run) == results(undisturbed)
    longer = run_main("--resume", "run", "--epochs", 4, cwd=tmp_path)
    assert longer.returncode == 0 and "Resumed at step 12 " in longer.stdout, longer.stderr
    rows = rows_of(run)
    best = max(rows, key=lambda row: row["validation_accuracy"])
    assert len(rows) == 4 and epochs_tested(rows) == [best["epoch"]]


def test_streamed_test_images_are_not_read_before_the_end(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "data")
    file = tmp_path / "data" / "test.parquet"
    images = pq.read_table(file)
    cells = images["image"].to_pylist()
    cells[7] = {"bytes": b"no image", "path": None}
    broken = images.set_column(0, "image", [cells]).replace_schema_metadata(images.schema.metadata)
    pq.write_table(broken, file)
    flags = ("--data", tmp_path / "data", "--ingest", "stream", "--num-workers", 1, "--run-name", "run", *FLAGS)
    result = run_main(*flags, "--epochs", 2, cwd=tmp_path)
    assert result.returncode == 2, result.stdout + result.stderr
    message = "error: the image in row 7 of test.parquet cannot be decoded (not PNG or JPEG).\n"
    assert result.stderr == message
    run = tmp_path / "runs/run"
    rows = rows_of(run)
    # Both epochs were evaluated, and the model is not lost.
    assert len(rows) == 2 and all(row["validation_accuracy"] >= 0 for row in rows) and epochs_tested(rows) == []
    assert load_classifier(str(run)).class_names == ("ant", "bee")
