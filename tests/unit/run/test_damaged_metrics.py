"""A damaged metrics.csv: what can be read is used, and shown without a traceback."""

import math
from collections.abc import Callable
from pathlib import Path

import compare
import pytest

from vgg_ddp.config import TrainConfig
from vgg_ddp.driver.launch import launch
from vgg_ddp.flags import UsageError
from vgg_ddp.observe.tensorboard import EventFile
from vgg_ddp.result import RunResult
from vgg_ddp.run.curves import write_curves
from vgg_ddp.run.files import COLUMNS, METRICS_FILE, Row, read_metrics, write_config, write_metrics
from vgg_ddp.run.storage import Folder
from vgg_ddp.run.summary import format_row, format_summary

MakeRows = Callable[[int], list[Row]]
GARBAGE = bytes(range(256)) * 3
CONFIG = TrainConfig(epochs=3, data="/no/such/folder")


def rename(content: bytes, old: str, new: str) -> bytes:
    return content.replace(old.encode(), new.encode(), 1)


DAMAGES: dict[str, tuple[Callable[[bytes], bytes], list[int], str]] = {
    "empty": (lambda _: b"", [], "it is empty"),
    "binary": (lambda _: GARBAGE, [], "its first line does not name the columns"),
    "no header": (lambda content: content.split(b"\n", 1)[1], [], "its first line does not name the columns"),
    "cut": (lambda content: content[:-40], [1, 2], "not a row of numbers: line 4"),
    "cut in the header": (
        lambda content: content[:30],
        [],
        "no column test_loss, test_accuracy, lr and others",
    ),
    "garbage at the end": (
        lambda content: content + GARBAGE,
        [1, 2, 3],
        "not a row of numbers: line 5, 6, 7 and others",
    ),
    "merge conflict": (lambda content: rename(content, "\n2,", "\n<<<<<<< HEAD\n2,"), [1, 2, 3], "line 3"),
    "nan": (lambda content: rename(content, "\n2,", "\nnan,"), [1, 3], "not a row of numbers: line 3"),
    "older columns": (
        lambda content: rename(content, "test_accuracy", "accuracy"),
        [1, 2, 3],
        "no column test_accuracy",
    ),
    "no times": (lambda content: rename(content, "seconds,time", "a,b"), [1, 2, 3], "no column seconds, time"),
    "repeated": (lambda content: content + content.split(b"\n", 1)[1], [1, 2, 3], "an epoch again: line 5, 6, 7"),
}


@pytest.fixture(params=DAMAGES)
def damaged(request: pytest.FixtureRequest, run: Folder, make_rows: MakeRows) -> tuple[Folder, list[int], str]:
    """A finished run whose metrics are damaged, the epochs that can be read, and what the NOTE says."""
    damage, epochs, expected = DAMAGES[request.param]
    write_config(run, CONFIG.to_dict())
    write_metrics(run, make_rows(3))
    run.write(METRICS_FILE, damage(run.read(METRICS_FILE)))
    run.write("model.safetensors", b"")
    return run, epochs, expected


def test_rows_that_can_be_read_are_kept(
    damaged: tuple[Folder, list[int], str], make_rows: MakeRows, capsys: pytest.CaptureFixture[str]
) -> None:
    run, epochs, expected = damaged
    rows = read_metrics(run)
    assert [row["epoch"] for row in rows] == epochs
    # Also if values are nan, so that nobody sees a new epoch.
    assert read_metrics(run) == rows
    for row in rows:
        whole = make_rows(3)[int(row["epoch"]) - 1]
        assert tuple(row) == COLUMNS
        assert all(row[name] == whole[name] or math.isnan(row[name]) or name == "time" for name in COLUMNS)
    error = capsys.readouterr().err
    assert error.startswith(f"NOTE: {run}/metrics.csv is damaged (") and expected in error and error.count("\n") == 1


def test_everything_is_still_shown(damaged: tuple[Folder, list[int], str]) -> None:
    run, epochs, _ = damaged
    if rows := read_metrics(run):
        assert f"epochs             {epochs[-1]}" in format_summary(rows)
        assert all(format_row(row, 3).startswith("epoch ") for row in rows)
        EventFile(run).write(rows)
        write_curves(run, rows, "a title")
        assert run.exists("curves.png")


def test_runs_are_compared(
    damaged: tuple[Folder, list[int], str],
    make_rows: MakeRows,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    run, epochs, _ = damaged
    other = Folder(run.filesystem, run.path + "-2")
    write_config(other, TrainConfig(epochs=3).to_dict())
    write_metrics(other, make_rows(3))
    other.write("chosen.json", GARBAGE)
    monkeypatch.setattr("sys.argv", ["compare.py", run.path, other.path, "--output", str(tmp_path / "compare.png")])
    if not epochs:
        with pytest.raises(SystemExit, match="2"):
            compare.main()
        assert "has not finished an epoch yet" in capsys.readouterr().err
        return
    assert compare.main() == 0
    printed = capsys.readouterr()
    assert f"{epochs[-1]}/3" in printed.out and (tmp_path / "compare.png").exists()
    assert f"NOTE: {other}/chosen.json cannot be read: " in printed.err


def resume(run: Folder) -> RunResult:
    storage_path = str(Path(run.path).parent)
    return launch(
        TrainConfig(resume="run", storage_path=storage_path), ["--resume", "run", "--storage-path", storage_path], 0.0
    )


def test_finished_run_is_recognized_by_its_last_epoch(
    damaged: tuple[Folder, list[int], str], capsys: pytest.CaptureFixture[str]
) -> None:
    run, epochs, _ = damaged
    if epochs[-1:] == [3]:
        assert resume(run).ended == "finished"
        assert "Run run is already finished" in capsys.readouterr().out
        return
    # It would continue from its newest checkpoint.
    with pytest.raises(UsageError, match="--data /no/such/folder does not exist"):
        resume(run)


def test_metrics_that_are_a_folder_do_not_stop_a_resume(run: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    write_config(run, CONFIG.to_dict())
    run.filesystem.create_dir((run / METRICS_FILE).path)
    with pytest.raises(UsageError, match="--data /no/such/folder does not exist"):
        resume(run)
    assert f"NOTE: {run}/metrics.csv cannot be read: " in capsys.readouterr().err
