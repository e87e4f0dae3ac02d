"""The metrics of a run with a validation split, as they are stored and shown: each names its split."""

import math
import re
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sagemaker_entry.client.trainer import METRICS
from vgg_ddp.config import TrainConfig
from vgg_ddp.observe.tensorboard import EVENTS_FILE, EventFile
from vgg_ddp.observe.terminal import Follower
from vgg_ddp.run import curves
from vgg_ddp.run.files import METRICS_FILE, Row, has_validation, read_metrics, write_config, write_metrics
from vgg_ddp.run.runs import Run
from vgg_ddp.run.storage import Folder
from vgg_ddp.run.summary import best_row, format_row, format_summary, format_table, format_test, kept_row, read_run

MakeRows = Callable[[int], list[Row]]
VALIDATION = (0.25, 0.75, 0.75, 0.5)


@pytest.fixture
def validated(make_rows: MakeRows) -> list[Row]:
    """Four epochs, evaluated on validation images; the second one is the best."""
    untested = {"test_loss": math.nan, "test_accuracy": math.nan}
    accuracies = [{"validation_accuracy": accuracy, "validation_loss": 2 - accuracy} for accuracy in VALIDATION]
    return [row | untested | accuracy for row, accuracy in zip(make_rows(4), accuracies, strict=True)]


@pytest.fixture
def tested(validated: list[Row]) -> list[Row]:
    """The same epochs at the end of the run."""
    return [validated[0], validated[1] | {"test_loss": 1.5, "test_accuracy": 0.625}, *validated[2:]]


def test_metrics_have_the_columns_of_the_split(run: Folder, tested: list[Row]) -> None:
    write_metrics(run, tested)
    header, _, second, third, _ = run.read(METRICS_FILE).decode().splitlines()
    columns = "epoch,step,loss,train_accuracy,validation_loss,validation_accuracy,test_loss,test_accuracy,lr"
    assert header.startswith(columns)
    assert ",1.25,0.75,1.5,0.625," in second and ",1.25,0.75,nan,nan," in third
    assert read_metrics(run) == tested and has_validation(tested)


def test_best_epoch_is_the_first_one_with_the_best_validation_accuracy(
    validated: list[Row], tested: list[Row], make_rows: MakeRows
) -> None:
    assert best_row(validated) == validated[1] and kept_row(validated) == validated[3]
    assert best_row(tested) == kept_row(tested) == tested[1]
    # Without a split, the epochs are evaluated on the test images.
    assert best_row(make_rows(3)) == kept_row(make_rows(3)) == make_rows(3)[2]


def test_lines_name_the_split(tested: list[Row], make_rows: MakeRows) -> None:
    line = format_row(tested[1], 15)
    assert "  validation 75.00%  lr " in line and "test" not in line
    assert format_test(tested[1], 15) == "epoch  2/15  test 62.50% with the weights of this epoch"
    assert "validation" not in format_row(make_rows(1)[0], 15)


def test_sagemaker_finds_both_accuracies(tested: list[Row]) -> None:
    def found(line: str) -> dict[str, str]:
        matches = {name: re.search(regex, line) for name, regex in METRICS.items()}
        return {name: match[1] for name, match in matches.items() if match}

    epoch = found(format_row(tested[1] | {"train_accuracy": 0.5}, 15))
    assert (epoch["train_accuracy"], epoch["validation_accuracy"]) == ("50.00", "75.00")
    assert epoch.keys() == METRICS.keys() - {"test_accuracy"}
    assert found(format_test(tested[1], 15)) == {"test_accuracy": "62.50"}
    assert not any(map(found, format_summary(tested).splitlines()))


def test_summary_has_both_accuracies_and_their_epochs(validated: list[Row], tested: list[Row]) -> None:
    lines = [line.split(maxsplit=1) for line in format_summary(tested).splitlines()]
    assert ["validation", "50.00% (best 75.00%, epoch 2)"] in lines
    assert ["test", "accuracy      62.50% (weights of epoch 2)"] in lines
    assert "test accuracy      -" in format_summary(validated)


def test_table_compares_runs_with_and_without_a_split(tmp_path: Path, tested: list[Row], make_rows: MakeRows) -> None:
    plain = make_rows(1)[0] | {"train_accuracy": 0.5, "test_accuracy": 0.25}
    for name, rows in (("split", [row | {"train_accuracy": 0.5} for row in tested]), ("plain", [plain])):
        write_config(Folder.at(str(tmp_path / name)), TrainConfig(epochs=4).to_dict())
        write_metrics(Folder.at(str(tmp_path / name)), rows)
    split, without = (read_run(name, str(tmp_path)) for name in ("split", "plain"))
    heading, first, second = (re.split(r"  +", line) for line in format_table([split, without]).splitlines())
    assert heading[3:7] == ["train", "validation", "best validation (epoch)", "test (epoch)"]
    assert first[3:7] == ["50.00%", "50.00%", "75.00% (2)", "62.50% (2)"]
    assert second[3:7] == ["50.00%", "-", "-", "25.00% (1)"]
    heading, _ = (re.split(r"  +", line) for line in format_table([without]).splitlines())
    assert heading[3:6] == ["train", "test", "best test (epoch)"]
    assert curves.draw([split, without]).startswith(b"\x89PNG")


def test_curves_show_the_tested_epoch_once_it_is_known(run: Folder, validated: list[Row], tested: list[Row]) -> None:
    pictures = []
    for rows in (validated, tested):
        curves.write_curves(run, rows, "a title")
        with Image.open((run / "curves.png").path) as picture:
            pictures.append(np.asarray(picture.convert("RGB")))
    assert (pictures[0] != pictures[1]).any()


def test_tensorboard_gets_the_test_after_all_epochs(run: Folder, validated: list[Row], tested: list[Row]) -> None:
    EventFile(run).write(validated)
    before = run.read(EVENTS_FILE)
    EventFile(run).write(tested)
    # TensorBoard continues to read where it was.
    assert run.read(EVENTS_FILE).startswith(before)
    accumulator = EventAccumulator(run.path)
    accumulator.Reload()
    read = {
        tag: [(event.step, event.value) for event in accumulator.Scalars(tag)]
        for tag in ("accuracy/validation", "loss/validation", "accuracy/test", "loss/test")
    }
    assert read == {
        "accuracy/validation": list(enumerate(VALIDATION, start=1)),
        "loss/validation": [(epoch, 2 - accuracy) for epoch, accuracy in enumerate(VALIDATION, start=1)],
        "accuracy/test": [(2, 0.625)],
        "loss/test": [(2, 1.5)],
    }


def test_test_of_a_run_is_printed_once(
    run: Folder, validated: list[Row], tested: list[Row], capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [format_row(row, 4) for row in validated]
    with Follower(Run(TrainConfig(epochs=4), "run", run, exists=False), time.time()):
        write_metrics(run, validated)
        printed, deadline = "", time.monotonic() + 10
        while printed.count("\n") < 4 and time.monotonic() < deadline:
            time.sleep(0.02)
            printed += capsys.readouterr().out
        assert printed.splitlines() == lines
        write_metrics(run, tested)
    assert capsys.readouterr().out.splitlines() == [format_test(tested[1], 4)]
