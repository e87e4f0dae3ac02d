"""compare.py, called in this process."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import compare
import pytest
from PIL import Image

from support.choices import write_choices
from vgg_ddp.config import TrainConfig
from vgg_ddp.run.files import Row, write_config, write_metrics
from vgg_ddp.run.storage import Folder

Compare = Callable[..., str]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder with two runs of different learning rates, after 3 of 3 epochs and 1 of 2 epochs."""
    folder = tmp_path / "runs"
    for name, config, count in (
        ("first", TrainConfig(epochs=3, lr=0.25), 3),
        ("second-longer-name", TrainConfig(epochs=2, lr=0.5, run_name="x"), 1),
    ):
        rows: list[Row] = [
            {
                "epoch": epoch + 1.0,
                "step": 10.0 * epoch,
                "loss": 2.0 - epoch / 4,
                "train_accuracy": 0.25,
                "validation_loss": math.nan,
                "validation_accuracy": math.nan,
                "test_loss": 2.0,
                "test_accuracy": [0.125, 0.5, 0.375][epoch],
                "lr": 0.1,
                "images_per_second": [50.0, 100.0, 200.0][epoch],
                "seconds": [100.0, 50.0, 25.0][epoch],
                "time": 1000.0 + epoch,
            }
            for epoch in range(count)
        ]
        write_config(Folder.at(str(folder / name)), config.to_dict())
        write_metrics(Folder.at(str(folder / name)), rows)
    return folder


@pytest.fixture
def command(printed_by: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Compare:
    """Run the command in its own folder and return its output."""
    monkeypatch.chdir(tmp_path)
    return partial(printed_by, compare.main)


@pytest.fixture
def refusal(refused_by: Callable[..., tuple[str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Compare:
    """Run the command, which must fail with code 2 and one line, and return that line."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: refused_by(compare.main, *arguments)[1]


@pytest.mark.usefixtures("runs")
def test_table_shows_the_results_of_each_run(command: Compare) -> None:
    heading, first, second = command("first", "second-longer-name").splitlines()[:3]
    assert len(heading) == len(first) == len(second)
    # 50 images/s for 100 s, 100 for 50 s and 200 for 25 s: 15,000 images in 175 s.
    assert first.split() == ["first", "3/3", "1.5000", "25.00%", "37.50%", "50.00%", "(2)", "86", "175.0"]
    name, *rest = second.split()
    assert (name, rest) == ("second-longer-name", ["1/2", "2.0000", "25.00%", "12.50%", "12.50%", "(1)", "50", "100.0"])


@pytest.mark.usefixtures("runs")
def test_only_settings_that_differ_are_listed(command: Compare) -> None:
    output = command("first", "second-longer-name")
    differences = output.split("Settings that differ:\n")[1].split("\n\n")[0].splitlines()
    assert [line.split()[0] for line in differences] == ["--epochs", "--lr"]
    assert differences[1].split()[1:] == ["first:", "0.25", "second-longer-name:", "0.5"]


def test_runs_and_output_may_be_given_as_paths(command: Compare, runs: Path, tmp_path: Path) -> None:
    command(runs / "first", f"{runs}/second-longer-name/", "--output", "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.format == "PNG" and min(picture.size) > 500


def test_choices_that_differ_are_listed_if_known(command: Compare, runs: Path) -> None:
    for name, precision in (("first", "bf16"), ("second-longer-name", "fp32")):
        config = TrainConfig(batch_size=24)
        write_choices(runs / name, config, precision=precision)
    (runs / "old").mkdir()
    for file in ("config.json", "metrics.csv"):
        (runs / "old" / file).write_bytes((runs / "first" / file).read_bytes())
    output = command("old", "first", "second-longer-name")
    differences = output.split("Settings that differ:\n")[1].split("\n\n")[0].splitlines()
    assert [line.split()[0] for line in differences] == ["--epochs", "--lr", "precision"]
    assert differences[2].split()[1:] == ["old:", "unknown", "first:", "bf16", "second-longer-name:", "fp32"]


def test_models_that_differ_are_listed(command: Compare, runs: Path) -> None:
    config = TrainConfig(epochs=2, lr=0.5, batch_size=24)
    for name, model in (("first", "VGG11"), ("second-longer-name", "ResNet")):
        write_config(Folder.at(str(runs / name)), config.to_dict())
        write_choices(runs / name, config, model=model)
    output = command("first", "second-longer-name")
    differences = output.split("Settings that differ:\n")[1].split("\n\n")[0].splitlines()
    assert [line.split() for line in differences] == [["model", "first:", "VGG11", "second-longer-name:", "ResNet"]]


def test_setting_is_listed_once_if_its_choice_also_differs(command: Compare, runs: Path) -> None:
    for name, batch_size, fast in (("first", 512, True), ("second-longer-name", 256, False)):
        config = TrainConfig(epochs=2, lr=0.5, batch_size=batch_size, fast_convolutions=fast, ingest="memory")
        write_config(Folder.at(str(runs / name)), config.to_dict())
        write_choices(runs / name, config)
    output = command("first", "second-longer-name")
    differences = output.split("Settings that differ:\n")[1].split("\n\n")[0].splitlines()
    assert [line.split() for line in differences] == [
        ["fast_convolutions", "first:", "True", "second-longer-name:", "False"],
        ["global_batch_size", "first:", "512", "second-longer-name:", "256"],
    ]


def test_setting_is_listed_if_the_choice_is_the_same(command: Compare, runs: Path) -> None:
    # On a GPU, neither run uses fast convolutions.
    for name, fast in (("first", True), ("second-longer-name", False)):
        config = TrainConfig(epochs=2, lr=0.5, batch_size=512, fast_convolutions=fast)
        write_config(Folder.at(str(runs / name)), config.to_dict())
        write_choices(runs / name, config, device="cuda")
    output = command("first", "second-longer-name")
    differences = output.split("Settings that differ:\n")[1].split("\n\n")[0].splitlines()
    assert [line.split()[0] for line in differences] == ["--fast-convolutions"]


def test_equal_settings_are_reported_as_equal(command: Compare, runs: Path) -> None:
    for name in ("a", "b"):
        (runs / name).mkdir()
        for file in ("config.json", "metrics.csv"):
            (runs / name / file).write_bytes((runs / "first" / file).read_bytes())
    assert "All runs have the same settings." in command("a", "b")


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["first"], "expected at least two runs"),
        (["first", "first"], "first is given more than once"),
        (["first", "third"], "third: no run at"),
        (["first", "gone/third"], "gone/third: no run at"),
        (["first", "second-longer-name", "--output", "no/such/folder.png"], "--output no/such/folder.png cannot be"),
        (["first", "abc://x/y"], "abc://x/y cannot be read"),
    ],
)
def test_invalid_input_is_one_line(refusal: Compare, arguments: list[str], expected: str) -> None:
    assert expected in refusal(*arguments)


def test_run_without_an_epoch_is_refused(refusal: Compare, runs: Path) -> None:
    (runs / "second-longer-name" / "metrics.csv").unlink()
    assert "second-longer-name has not finished an epoch yet." in refusal("first", "second-longer-name")
