"""Ranks of a process group, each in its own process."""

from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist
import torch.multiprocessing as mp

from vgg_ddp.compat import torch_store  # noqa: F401 - imported before the group is created, as in a run


def run_ranks(count: int, run: Callable[[int, Path], None], folder: Path) -> None:
    """Call `run(rank, folder)` on each rank, and wait for all of them."""
    mp.spawn(_run_rank, (count, run, folder), nprocs=count)  # type: ignore[no-untyped-call]


def _run_rank(rank: int, count: int, run: Callable[[int, Path], None], folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=count)
    run(rank, folder)
    if dist.is_initialized():
        dist.destroy_process_group()
