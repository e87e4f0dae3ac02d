"""The command that compares runs, in this process."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import compare
import pytest
from PIL import Image

from vgg_ddp.config import TrainConfig
from vgg_ddp.report import Row, write_config, write_metrics
from vgg_ddp.storage import Folder

Compare = Callable[..., str]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder with two runs: three epochs of three, one epoch of two with another learning rate."""
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
    """Run the command in a folder of its own and give what it printed."""
    monkeypatch.chdir(tmp_path)
    return partial(printed_by, compare.main)


@pytest.fixture
def refusal(refused_by: Callable[..., tuple[str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Compare:
    """Run the command, which must end with code 2 and one line, and give that line."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: refused_by(compare.main, *arguments)[1]


@pytest.mark.usefixtures("runs")
def test_table_holds_what_each_run_reached(command: Compare) -> None:
    heading, first, second = command("first", "second-longer-name").splitlines()[:3]
    assert len(heading) == len(first) == len(second)
    # 50 images/s for 100 s, 100 for 50 s and 200 for 25 s: 15,000 images in 175 s.
    assert first.split() == ["first", "3/3", "1.5000", "25.00%", "37.50%", "50.00%", "(2)", "86", "175.0"]
    name, *rest = second.split()
    assert (name, rest) == ("second-longer-name", ["1/2", "2.0000", "25.00%", "12.50%", "12.50%", "(1)", "50", "100.0"])


@pytest.mark.usefixtures("runs")
def test_settings_that_differ_are_named_and_no_others(command: Compare) -> None:
    output = command("first", "second-longer-name")
    differences = output.split("Settings that differ:\n")[1].split("\n\n")[0].splitlines()
    assert [line.split()[0] for line in differences] == ["--epochs", "--lr"]
    assert differences[1].split()[1:] == ["first:", "0.25", "second-longer-name:", "0.5"]


def test_runs_may_be_named_by_their_folders_and_the_picture_too(command: Compare, runs: Path, tmp_path: Path) -> None:
    command(runs / "first", f"{runs}/second-longer-name/", "--output", "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.format == "PNG" and min(picture.size) > 500


def test_equal_settings_are_said_to_be_equal(command: Compare, runs: Path) -> None:
    for name in ("a", "b"):
        (runs / name).mkdir()
        for file in ("config.json", "metrics.csv"):
            (runs / name / file).write_bytes((runs / "first" / file).read_bytes())
    assert "All have the same settings." in command("a", "b")


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["first"], "expected two runs or more"),
        (["first", "first"], "expected each run once"),
        (["first", "third"], "third: there is no run at"),
        (["first", "gone/third"], "gone/third: there is no run at"),
        (["first", "second-longer-name", "--output", "no/such/folder.png"], "--output no/such/folder.png cannot be"),
        (["first", "abc://x/y"], "abc://x/y cannot be read"),
    ],
)
def test_input_that_cannot_be_used_is_one_line(refusal: Compare, arguments: list[str], expected: str) -> None:
    assert expected in refusal(*arguments)


def test_run_without_an_epoch_is_refused(refusal: Compare, runs: Path) -> None:
    (runs / "second-longer-name" / "metrics.csv").unlink()
    assert "second-longer-name has not finished an epoch yet." in refusal("first", "second-longer-name")
