"""What ranks tell each other as objects. A process that is alone tells itself."""

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

# Its functions keep the process group that there is when they are imported, and torch.optim imports them. Before any
# group here: else gloo's threads outlive the group, and may abort a process that ends meanwhile.
# See https://github.com/pytorch/pytorch/issues/190489.
import torch.distributed.nn  # noqa: F401

T = TypeVar("T")


def from_rank_zero(decide: Callable[[], T]) -> T:
    """Call a function on rank 0 and give all ranks its result. A collective."""
    if not dist.is_initialized():
        return decide()
    decided = [decide() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(decided)
    return decided[0]  # type: ignore[return-value]


def from_all_ranks(value: T) -> list[T]:
    """Give all ranks the values of all, in the order of the ranks. A collective."""
    if not dist.is_initialized():
        return [value]
    values: list[T | None] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]
