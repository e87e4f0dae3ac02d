"""What the driver prints about a run, and writes for TensorBoard."""

import os
import pty
import re
import select
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from support.choices import write_choices
from support.command import read_terminal
from vgg_ddp.config import TrainConfig
from vgg_ddp.observe.tensorboard import EVENTS_FILE
from vgg_ddp.observe.terminal import Follower
from vgg_ddp.run import chosen, summary
from vgg_ddp.run import files as report
from vgg_ddp.run.files import Row
from vgg_ddp.run.runs import Run
from vgg_ddp.run.storage import Folder

MakeRows = Callable[[int], list[Row]]


def follower(folder: Folder, started_at: float, **settings: object) -> Follower:
    config = TrainConfig(epochs=3, **settings)  # type: ignore[arg-type]
    return Follower(Run(config, "run", folder, exists=False), started_at)


def wait_for_lines(capsys: pytest.CaptureFixture[str], count: int) -> list[str]:
    """The output once it has `count` lines or after 10 s."""
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
    assert lines == [summary.format_row(row, 3) for row in make_rows(3)]


def test_follower_reprints_epochs_that_a_restart_repeats(
    run: Folder, make_rows: MakeRows, capsys: pytest.CaptureFixture[str]
) -> None:
    report.write_metrics(run, make_rows(2))
    with follower(run, time.time()):
        wait_for_lines(capsys, 2)
        # The file keeps its rows until the first repeated epoch is finished.
        first, second = make_rows(2)
        second = second | {"time": second["time"] + 100, "loss": 0.5}
        report.write_metrics(run, [first, second])
        assert wait_for_lines(capsys, 1) == [summary.format_row(second, 3)]
        # Or it temporarily has fewer rows.
        report.write_metrics(run, [first])
        # Waits for several polls, which print nothing.
        time.sleep(2)
        report.write_metrics(run, [first, second])
    assert capsys.readouterr().out.splitlines() == [summary.format_row(second, 3)]


def test_follower_prints_the_time_of_the_first_step(run: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    report.write_startup(run, {"first step": 107.5})
    with follower(run, 100.0):
        pass
    assert capsys.readouterr().out == "Started:   first step 7.5 s after the command\n"


def test_follower_ignores_the_start_of_an_earlier_command(run: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    report.write_startup(run, {"first step": 99.0})
    with follower(run, 100.0):
        pass
    assert capsys.readouterr().out == ""


def test_follower_prints_one_note_if_the_first_step_is_late(
    run: Folder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vgg_ddp.observe.terminal.SECONDS_BEFORE_NOTE", 0.6)
    with follower(run, 100.0, num_workers=0):
        time.sleep(1.2)
    assert capsys.readouterr().out == ""
    with follower(run, 100.0):
        (note,) = wait_for_lines(capsys, 1)
        time.sleep(1.2)
        report.write_startup(run, {"first step": 107.5})
    assert note.startswith(
        "NOTE: no step yet after 0.6 s: the workers are still starting, or waiting for machines, CPUs, or GPUs"
    )
    assert capsys.readouterr().out == "Started:   first step 7.5 s after the command\n"
    with follower(run, 100.0):
        time.sleep(1.2)
    assert "NOTE" not in capsys.readouterr().out


class Screen:
    """A terminal in place of standard output, and everything written to it."""

    def __init__(self, terminal: int) -> None:
        self._terminal = terminal
        self._written = ""

    @property
    def text(self) -> str:
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self._written)

    def wait_for(self, pattern: str) -> None:
        """Read until a pattern is shown; fail the test if that takes more than 10 s."""
        deadline = time.monotonic() + 10
        while not re.search(pattern, self.text):
            assert select.select([self._terminal], [], [], max(0, deadline - time.monotonic()))[0], self.text
            self._written += os.read(self._terminal, 65536).decode(errors="replace")

    def read_rest(self) -> None:
        self._written += read_terminal(self._terminal)


@contextmanager
def screen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Screen]:
    ours, its = pty.openpty()
    shown = Screen(ours)
    with open(its, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr("sys.stdout", terminal)
        patch.setenv("TERM", "xterm")
        patch.setenv("COLUMNS", "120")
        yield shown
    shown.read_rest()


def test_bar_on_a_terminal_shows_the_progress(
    run: Folder, make_rows: MakeRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress = {"steps_per_epoch": 10, "images_per_second": 1234.5, "loss": 2.25, "time": 101.0}
    with screen(monkeypatch) as shown, follower(run, 100.0):
        report.write_progress(run, progress | {"step": 3})
        shown.wait_for(r"epoch 1/3 \S+ step 3/30  1,234 images/s  loss 2\.2500")
        report.write_progress(run, progress | {"step": 12})
        shown.wait_for(r"epoch 2/3 \S+ step 12/30  1,234 images/s  loss 2\.2500  ETA 0:00:\d\d")
        report.write_metrics(run, make_rows(1))
    assert summary.format_row(make_rows(1)[0], 3) in shown.text
    assert not run.exists("progress.json")


def test_progress_of_an_earlier_command_is_not_shown(run: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    progress = {"step": 3, "steps_per_epoch": 10, "images_per_second": 1234.5, "loss": 2.25, "time": 99.0}
    report.write_progress(run, progress)
    with screen(monkeypatch) as shown, follower(run, 100.0):
        time.sleep(0.7)
    assert "starting" in shown.text and "1,234" not in shown.text


def test_without_a_terminal_progress_is_only_deleted(run: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    progress = {"step": 3, "steps_per_epoch": 10, "images_per_second": 1234.5, "loss": 2.25, "time": 101.0}
    report.write_progress(run, progress)
    with follower(run, 100.0):
        time.sleep(0.7)
    assert capsys.readouterr().out == ""
    assert not run.exists("progress.json")


def test_choices_are_printed_with_the_first_step(run: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    write_choices(run, TrainConfig(batch_size=320), device_name="Some CPU @ 2 GHz", precision="bf16")
    report.write_startup(run, {"first step": 107.5})
    with follower(run, 100.0):
        pass
    first, second = capsys.readouterr().out.splitlines()
    expected = "2 CPU workers in bf16 with fast convolutions, global batch 320, on Some CPU @ 2 GHz"
    assert first == f"Training:  {expected}"
    assert second == "Started:   first step 7.5 s after the command"


def test_choices_on_a_gpu_name_its_arithmetic_and_graphs(run: Folder) -> None:
    on_gpu = {"device": "cuda", "device_name": "a GPU", "tf32": True, "cuda_graphs": True, "world_size": 1}
    write_choices(run, TrainConfig(batch_size=320), **on_gpu)
    expected = "1 GPU worker in fp32 with TF32 products and CUDA graphs, global batch 320, on a GPU"
    assert chosen.format_chosen(chosen.read_chosen(run)) == expected


def test_events_of_a_resumed_run_have_each_epoch_once(run: Folder, make_rows: MakeRows) -> None:
    report.write_metrics(run, make_rows(2))
    with follower(run, 100.0):
        pass
    with follower(run, 200.0):
        report.write_metrics(run, make_rows(3))
    accumulator = EventAccumulator(run.path)
    accumulator.Reload()
    assert [event.step for event in accumulator.Scalars("accuracy/test")] == [1, 2, 3]


def test_events_that_cannot_be_written_are_reported_once(
    run: Folder, make_rows: MakeRows, capsys: pytest.CaptureFixture[str]
) -> None:
    # A folder instead of the file.
    run.filesystem.create_dir((run / EVENTS_FILE).path, recursive=True)
    with follower(run, 100.0):
        for epochs in (1, 2):
            report.write_metrics(run, make_rows(epochs))
            time.sleep(0.7)
    captured = capsys.readouterr()
    assert captured.out.count("epoch") == 2
    assert (
        captured.err.startswith("NOTE: TensorBoard's event file cannot be written: ") and captured.err.count("\n") == 1
    )


def test_damaged_files_are_noted_once_and_epochs_are_still_printed(
    run: Folder, make_rows: MakeRows, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("startup.json", "chosen.json", "progress.json"):
        run.write(name, b"\xff{")
    with follower(run, 100.0):
        # Several polls.
        time.sleep(1.2)
        report.write_startup(run, {"first step": 107.5})
        report.write_metrics(run, make_rows(1))
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [
        "Started:   first step 7.5 s after the command",
        summary.format_row(make_rows(1)[0], 3),
    ]
    assert [line.split(": Unicode")[0] for line in captured.err.splitlines()] == [
        f"NOTE: {run}/{name} cannot be read" for name in ("startup.json", "chosen.json")
    ]


def test_terminal_without_a_progress_bar_shows_the_epochs(
    run: Folder, make_rows: MakeRows, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # As if it were not installed.
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    with screen(monkeypatch) as shown, follower(run, 100.0):
        report.write_metrics(run, make_rows(2))
    assert shown.text.splitlines() == [summary.format_row(row, 3) for row in make_rows(2)]
    assert capsys.readouterr().err.startswith("NOTE: the progress bar cannot be shown: ModuleNotFoundError")


def test_profile_is_printed_once(run: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    # Left over from an earlier command.
    run.write(report.PROFILE_FILE, b"the old table")
    with follower(run, 100.0, profile=True):
        time.sleep(0.7)
        run.write(report.PROFILE_FILE, b"the table")
        report.write_startup(run, {"first step": 107.5})
        time.sleep(1.2)
    assert capsys.readouterr().out.splitlines() == ["Started:   first step 7.5 s after the command", "the table"]
