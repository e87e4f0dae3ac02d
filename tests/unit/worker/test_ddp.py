"""Object collectives, and the threads of a process group after it is destroyed."""

from pathlib import Path

import torch
import torch.distributed as dist

from support.ranks import run_ranks
from vgg_ddp.worker.ddp import from_all_ranks, from_rank_zero


def exchange(rank: int, folder: Path) -> None:
    """Store the value from rank 0, then the values from all ranks."""
    torch.save((from_rank_zero(lambda: f"rank {rank}"), from_all_ranks(f"rank {rank}")), folder / f"{rank}.pt")


def test_ranks_receive_values_of_rank_zero_and_of_each_other(tmp_path: Path) -> None:
    run_ranks(2, exchange, tmp_path)
    received = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert received == [("rank 0", ["rank 0", "rank 1"])] * 2


def count_gloo_threads(rank: int, folder: Path) -> None:
    """Build an optimizer, and store the number of threads before and after the process group is destroyed."""
    torch.optim.SGD([torch.ones(1)], lr=0.1)
    before = gloo_threads()
    dist.destroy_process_group()
    torch.save((before, gloo_threads()), folder / f"{rank}.pt")


def gloo_threads() -> int:
    return sum("gloo" in name.read_text() for name in Path("/proc/self/task").glob("*/comm"))


def test_gloo_threads_end_with_the_process_group(tmp_path: Path) -> None:
    run_ranks(1, count_gloo_threads, tmp_path)
    before, after = torch.load(tmp_path / "0.pt")
    assert before > 0
    assert after == 0


def test_single_process_receives_its_own_value() -> None:
    assert from_rank_zero(lambda: "alone") == "alone"
    assert from_all_ranks("alone") == ["alone"]
