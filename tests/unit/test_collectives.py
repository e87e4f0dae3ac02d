"""What ranks tell each other."""

from pathlib import Path

import torch
import torch.distributed as dist

from ranks import run_ranks
from vgg_ddp.collectives import from_all_ranks, from_rank_zero


def talk(rank: int, folder: Path) -> None:
    """Ask rank 0, then all ranks, and store what came back."""
    torch.save((from_rank_zero(lambda: f"rank {rank}"), from_all_ranks(f"rank {rank}")), folder / f"{rank}.pt")


def test_ranks_hear_the_first_one_and_each_other(tmp_path: Path) -> None:
    run_ranks(2, talk, tmp_path)
    heard = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert heard == [("rank 0", ["rank 0", "rank 1"])] * 2


def count_threads_of_gloo(rank: int, folder: Path) -> None:
    """Store how many there are before and after the process group is destroyed, with an optimizer in between."""
    torch.optim.SGD([torch.ones(1)], lr=0.1)
    before = threads_of_gloo()
    dist.destroy_process_group()
    torch.save((before, threads_of_gloo()), folder / f"{rank}.pt")


def threads_of_gloo() -> int:
    return sum("gloo" in name.read_text() for name in Path("/proc/self/task").glob("*/comm"))


def test_threads_of_gloo_end_with_the_process_group(tmp_path: Path) -> None:
    run_ranks(1, count_threads_of_gloo, tmp_path)
    before, after = torch.load(tmp_path / "0.pt")
    assert before > 0
    assert after == 0


def test_process_that_is_alone_hears_itself() -> None:
    assert from_rank_zero(lambda: "alone") == "alone"
    assert from_all_ranks("alone") == ["alone"]
