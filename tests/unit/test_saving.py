"""Checkpoints that are written while training goes on."""

import threading

import pytest
import torch

from vgg_ddp import checkpoint, saving
from vgg_ddp.saving import Saver
from vgg_ddp.storage import Folder


def make_state(step: int, weight: torch.Tensor) -> checkpoint.State:
    return {"step": step, "replica": {"parameters": {"weight": weight}}}


def test_saved_state_is_that_of_the_moment_of_saving(run: Folder) -> None:
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


def test_other_ranks_write_nothing(run: Folder) -> None:
    saver = Saver(run, rank=1)
    saver.save(make_state(1, torch.zeros(3)))
    saver.wait()
    assert not run.exists()


def block(run: Folder) -> Folder:
    """Put a file where the run folder should be; gives the folder that it is in."""
    parent = Folder(run.filesystem, run.path.rpartition("/")[0])
    parent.write("run", b"")
    return parent


def test_write_that_fails_again_and_again_is_a_failure(run: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "RETRY_DELAYS", (0.01, 0.01))
    parent = block(run)
    saver = Saver(run, rank=0)
    saver.save(make_state(1, torch.zeros(3)))
    saver.wait()
    assert saver.failure
    assert saver.failure.startswith(f"{run} cannot be written: ")
    # The run ends: there is no other attempt.
    parent.delete("run")
    saver.save(make_state(2, torch.zeros(3)))
    saver.wait()
    assert not run.exists()


def test_write_that_fails_for_a_while_is_tried_again(run: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "RETRY_DELAYS", (0.2,) * 50)
    parent = block(run)
    saver = Saver(run, rank=0)
    saver.save(make_state(1, torch.zeros(3)))
    parent.delete("run")
    saver.wait()
    assert saver.failure is None
    assert len(checkpoint.list_names(run)) == 1


def test_note_that_cannot_be_written_is_no_failure(run: Folder) -> None:
    block(run)
    saver = Saver(run, rank=0)
    saver.note(lambda: run.write("note", b""))
    assert saver.failure is None


def test_waiting_without_a_checkpoint_is_no_error(run: Folder) -> None:
    Saver(run, rank=0).wait()


def test_passing_note_waits_for_nothing_and_its_failure_is_nobodys_business(
    run: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    saver = Saver(run, rank=0)
    started, go_on = threading.Event(), threading.Event()
    written = []

    def write_slowly() -> None:
        started.set()
        go_on.wait(10)
        written.append("slow")

    saver.note_meanwhile(write_slowly)
    assert started.wait(10)
    # The one before is not over: this one is left out.
    saver.note_meanwhile(lambda: written.append("left out"))
    go_on.set()
    saver.save(make_state(1, torch.zeros(3)))
    saver.wait()

    def fail() -> None:
        raise OSError("no space")

    saver.note_meanwhile(fail)
    saver.save(make_state(2, torch.zeros(3)))
    saver.wait()
    assert written == ["slow"]
    assert saver.failure is None and not caplog.records
