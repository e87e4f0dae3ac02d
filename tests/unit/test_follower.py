"""What is printed of a run while it goes on."""

import pty
import re
import time
from collections.abc import Callable

import pytest

from command import read_terminal
from vgg_ddp import report
from vgg_ddp.config import TrainConfig
from vgg_ddp.follower import Follower
from vgg_ddp.report import Row
from vgg_ddp.runs import Run
from vgg_ddp.storage import Folder

MakeRows = Callable[[int], list[Row]]


def follower(folder: Folder, started_at: float, **settings: object) -> Follower:
    config = TrainConfig(epochs=3, **settings)  # type: ignore[arg-type]
    return Follower(Run(config, "run", folder, exists=False), started_at)


def wait_for_lines(capsys: pytest.CaptureFixture[str], count: int) -> list[str]:
    """What is printed until there are so many lines, or 10 s are over."""
    printed, deadline = "", time.monotonic() + 10
    while printed.count("\n") < count and time.monotonic() < deadline:
        time.sleep(0.02)
        printed += capsys.readouterr().out
    return printed.splitlines()


def test_follower_prints_each_row_once(run: Folder, make_rows: MakeRows, capsys: pytest.CaptureFixture[str]) -> None:
    with follower(run, time.time()):
        report.write_metrics(run, make_rows(1))
        lines = wait_for_lines(capsys, 1)
        report.write_metrics(run, make_rows(3))
    lines += capsys.readouterr().out.splitlines()
    assert lines == [report.format_row(row, 3) for row in make_rows(3)]


def test_follower_prints_epochs_again_that_a_restart_took_back(
    run: Folder, make_rows: MakeRows, capsys: pytest.CaptureFixture[str]
) -> None:
    report.write_metrics(run, make_rows(2))
    with follower(run, time.time()):
        wait_for_lines(capsys, 2)
        report.write_metrics(run, make_rows(1))
        time.sleep(0.7)
        report.write_metrics(run, make_rows(2))
    assert capsys.readouterr().out.splitlines() == [report.format_row(make_rows(2)[1], 3)]


def test_follower_tells_when_the_first_step_was_done(run: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    report.write_startup(run, {"first step": 107.5})
    with follower(run, 100.0):
        pass
    assert capsys.readouterr().out == "Started:   first step 7.5 s after the command\n"


def test_follower_is_silent_about_the_start_of_an_earlier_command(
    run: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    report.write_startup(run, {"first step": 99.0})
    with follower(run, 100.0):
        pass
    assert capsys.readouterr().out == ""


def on_terminal(show: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> str:
    """What is written to a terminal that is standard output meanwhile."""
    ours, its = pty.openpty()
    with open(its, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr("sys.stdout", terminal)
        patch.setenv("TERM", "xterm")
        patch.setenv("COLUMNS", "120")
        show()
    return read_terminal(ours)


def test_bar_on_a_terminal_shows_how_far_the_run_is(
    run: Folder, make_rows: MakeRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    def show() -> None:
        with follower(run, 100.0) as shown:
            assert shown.live_seconds == 0.5
            for step in (3, 12):
                progress = {"step": step, "steps_per_epoch": 10, "images_per_second": 1234.5, "loss": 2.25}
                report.write_progress(run, progress | {"time": 101.0})
                time.sleep(0.9)
            report.write_metrics(run, make_rows(1))

    written = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", on_terminal(show, monkeypatch))
    assert re.search(r"epoch 1/3 \S+ step 3/30  1,234 images/s  loss 2\.2500", written), written
    assert re.search(r"epoch 2/3 \S+ step 12/30  1,234 images/s  loss 2\.2500  ETA 0:00:\d\d", written), written
    assert report.format_row(make_rows(1)[0], 3) in written
    assert not run.exists("progress.json")


def test_progress_of_an_earlier_command_is_not_shown(run: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    def show() -> None:
        with follower(run, 100.0):
            time.sleep(0.7)

    progress = {"step": 3, "steps_per_epoch": 10, "images_per_second": 1234.5, "loss": 2.25, "time": 99.0}
    report.write_progress(run, progress)
    written = on_terminal(show, monkeypatch)
    assert "starting" in written and "1,234" not in written


def test_without_a_terminal_nothing_is_asked_of_the_workers(run: Folder) -> None:
    assert follower(run, 100.0).live_seconds is None


def test_profile_is_printed_once(run: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    # Left by an earlier command.
    run.write(report.PROFILE_FILE, b"the old table")
    with follower(run, 100.0, profile=True):
        time.sleep(0.7)
        run.write(report.PROFILE_FILE, b"the table")
        report.write_startup(run, {"first step": 107.5})
        time.sleep(1.2)
    assert capsys.readouterr().out.splitlines() == ["Started:   first step 7.5 s after the command", "the table"]
