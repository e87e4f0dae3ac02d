"""Files that are written during training."""

import threading
import time

import pytest
import torch

from vgg_ddp.run import checkpoint
from vgg_ddp.run import saver as saving
from vgg_ddp.run.saver import Saver
from vgg_ddp.run.storage import Folder


def make_state(step: int, weight: torch.Tensor) -> checkpoint.State:
    return {"step": step, "replica": {"parameters": {"weight": weight}}}


def test_saved_state_is_a_snapshot(run: Folder) -> None:
    saver = Saver(run, rank=0)
    weight = torch.zeros(200_000)
    for step in range(1, 5):
        weight.fill_(step)
        saver.save(make_state(step, weight))
        weight.fill_(-1.0)
    saver.wait()
    names = checkpoint.list_names(run)
    assert [checkpoint.read(run, name)["step"] for name in names] == [4, 3]
    for name, step in zip(names, (4, 3), strict=True):
        saved = checkpoint.read(run, name)["replica"]["parameters"]["weight"]
        assert torch.equal(saved, torch.full((200_000,), float(step)))


def test_only_rank_zero_writes(run: Folder) -> None:
    saver = Saver(run, rank=1)
    saver.save(make_state(1, torch.zeros(3)))
    saver.wait()
    assert not run.exists()


def test_checkpoint_time_is_that_of_the_newest_complete_checkpoint(
    run: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "RETRY_DELAYS", ())
    saver = Saver(run, rank=0)
    started_at = saver.checkpoint_time
    saver.save(make_state(1, torch.zeros(3)))
    saver.wait()
    saved_at = saver.checkpoint_time
    assert started_at < saved_at <= time.time()
    # The next one cannot be written.
    run.delete("")
    block(run)
    saver.save(make_state(2, torch.zeros(3)))
    saver.wait()
    assert saver.failure and saver.checkpoint_time == saved_at


def block(run: Folder) -> Folder:
    """Put a file in place of the run folder; return the parent folder."""
    parent = Folder(run.filesystem, run.path.rpartition("/")[0])
    parent.write("run", b"")
    return parent


def test_repeated_write_failure_is_recorded(run: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "RETRY_DELAYS", (0.01, 0.01))
    parent = block(run)
    saver = Saver(run, rank=0)
    saver.save(make_state(1, torch.zeros(3)))
    saver.wait()
    assert saver.failure
    assert saver.failure.startswith(f"{run} cannot be written: ")
    # The run ends without another attempt.
    parent.delete("run")
    saver.save(make_state(2, torch.zeros(3)))
    saver.wait()
    assert not run.exists()


def test_write_that_fails_at_first_is_retried(run: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "RETRY_DELAYS", (0.2,) * 50)
    parent = block(run)
    saver = Saver(run, rank=0)
    saver.save(make_state(1, torch.zeros(3)))
    parent.delete("run")
    saver.wait()
    assert saver.failure is None
    assert len(checkpoint.list_names(run)) == 1


def test_optional_file_that_cannot_be_written_is_noted_once(run: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    block(run)
    saver = Saver(run, rank=0)
    for _ in range(3):
        saver.write_if_possible("metrics.csv", lambda: run.write("metrics.csv", b""))
    assert saver.failure is None
    error = capsys.readouterr().err
    assert error.startswith(f"NOTE: {run}/metrics.csv could not be written: ") and error.count("\n") == 1


def test_optional_file_may_be_retried(run: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "RETRY_DELAYS", (0.01, 0.01))
    parent, attempts = block(run), []

    def write() -> None:
        attempts.append(1)
        if len(attempts) == 3:
            parent.delete("run")
        run.write("metrics.csv", b"content")

    Saver(run, rank=0).write_if_possible("metrics.csv", write, retry=True)
    assert run.read("metrics.csv") == b"content"


def test_waiting_without_a_checkpoint_returns(run: Folder) -> None:
    Saver(run, rank=0).wait()


def test_background_write_is_skipped_while_busy_and_its_failure_is_ignored(
    run: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    saver = Saver(run, rank=0)
    started, go_on = threading.Event(), threading.Event()
    written = []

    def write_slowly() -> None:
        started.set()
        go_on.wait(10)
        written.append("slow")

    saver.write_in_background(write_slowly)
    assert started.wait(10)
    # Skipped, because the first write is still running.
    saver.write_in_background(lambda: written.append("skipped"))
    go_on.set()
    saver.save(make_state(1, torch.zeros(3)))
    saver.wait()

    def fail() -> None:
        raise OSError("no space")

    def fail_in_another_way() -> None:
        raise ValueError("no number")

    saver.write_in_background(fail)
    saver.save(make_state(2, torch.zeros(3)))
    saver.wait()
    saver.write_in_background(fail_in_another_way)
    saver.wait()
    assert written == ["slow"]
    assert saver.failure is None and not caplog.records


def test_newest_version_of_a_file_is_written_in_the_background_and_storage_does_not_hold_up_the_caller(
    run: Folder,
) -> None:
    saver, is_free, written = Saver(run, rank=0), threading.Event(), []

    def write(version: int) -> None:
        is_free.wait(10)
        run.write("metrics.csv", f"{version}".encode())
        written.append(version)

    for version in range(5):
        saver.write_newest("metrics.csv", lambda version=version: write(version))  # type: ignore[misc]
    saver.write_newest("startup.json", lambda: run.write("startup.json", b"{}"))
    assert not written
    is_free.set()
    saver.wait()
    # The first one had started; those between are out of date.
    assert written in ([0, 4], [4])
    assert run.read("metrics.csv") == b"4" and run.read("startup.json") == b"{}"


def test_failed_write_in_the_background_is_noted_once(run: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    block(run)
    saver = Saver(run, rank=0)
    for _ in range(3):
        saver.write_newest("metrics.csv", lambda: run.write("metrics.csv", b""))
        saver.wait()
    assert saver.failure is None
    error = capsys.readouterr().err
    assert error.startswith(f"NOTE: {run}/metrics.csv could not be written: ") and error.count("\n") == 1
