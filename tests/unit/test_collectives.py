"""What ranks tell each other."""

from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from vgg_ddp.collectives import from_all_ranks, from_rank_zero


def talk(rank: int, folder: str) -> None:
    """Ask rank 0, then all ranks, and store what came back."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save((from_rank_zero(lambda: f"rank {rank}"), from_all_ranks(f"rank {rank}")), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_ranks_hear_the_first_one_and_each_other(tmp_path: Path) -> None:
    mp.spawn(talk, (str(tmp_path),), nprocs=2)  # type: ignore[no-untyped-call]
    heard = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert heard == [("rank 0", ["rank 0", "rank 1"])] * 2


def test_process_that_is_alone_hears_itself() -> None:
    assert from_rank_zero(lambda: "alone") == "alone"
    assert from_all_ranks("alone") == ["alone"]
