"""Checkpoints that a job without a Ray cluster writes while it trains."""

import pytest
import torch

from vgg_ddp import checkpoint
from vgg_ddp.saving import Saver
from vgg_ddp.storage import Folder


def make_state(step: int, weight: torch.Tensor) -> checkpoint.State:
    return {"step": step, "replica": {"parameters": {"weight": weight}}}


def test_saved_state_is_that_of_the_moment_of_saving(run: Folder) -> None:
    saver = Saver(run, is_local=True, rank=0)
    weight = torch.zeros(200_000)
    for step in range(1, 5):
        weight.fill_(step)
        saver.save(make_state(step, weight), {})
        weight.fill_(-1.0)
    saver.wait()
    names = checkpoint.list_names(run)
    assert [checkpoint.read(run, name)["step"] for name in names] == [4, 3]
    for name, step in zip(names, (4, 3), strict=True):
        saved = checkpoint.read(run, name)["replica"]["parameters"]["weight"]
        assert torch.equal(saved, torch.full((200_000,), float(step)))


def test_other_ranks_write_nothing(run: Folder) -> None:
    saver = Saver(run, is_local=True, rank=1)
    saver.save(make_state(1, torch.zeros(3)), {})
    saver.wait()
    assert not run.exists()


@pytest.mark.parametrize("call", ["wait", "save"])
def test_failed_write_is_raised_at_the_next_call(run: Folder, call: str) -> None:
    parent = Folder(run.filesystem, run.path.rpartition("/")[0])
    parent.write("run", b"a file where the run folder should be")
    saver = Saver(run, is_local=True, rank=0)
    saver.save(make_state(1, torch.zeros(3)), {})
    with pytest.raises(OSError):
        if call == "wait":
            saver.wait()
        else:
            saver.save(make_state(2, torch.zeros(3)), {})


def test_waiting_without_a_checkpoint_is_no_error(run: Folder) -> None:
    Saver(run, is_local=True, rank=0).wait()
