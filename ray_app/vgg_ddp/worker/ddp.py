"""What the ranks exchange besides gradients: statistics of batch normalization, and objects. Needs no Ray."""

import inspect
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")
# torch 2.13 renamed the argument and warns about the old name.
SYNC_BUFFERS = next(
    name
    for name in ("forward_sync_buffers", "broadcast_buffers")
    if name in inspect.signature(nn.parallel.DistributedDataParallel).parameters
)


def warm_up_reducer(model: nn.Module, forward_backward: Callable[[], None]) -> None:
    """Run one backward pass before the first real step, without changing the model. A collective.

    After its first backward pass DDP rebuilds its buckets in the order in which gradients became ready. With three or
    more ranks, buckets decide the order of summation, so a resumed run would round its first step differently.
    """
    if dist.is_initialized():
        buffers = buffer_vector(model)
        forward_backward()
        set_buffers(model, buffers)


def buffer_vector(model: nn.Module) -> Tensor:
    """The running statistics of batch normalization as one float64 vector, on the device."""
    buffers = [buffer.detach().reshape(-1).double() for buffer in model.buffers()]
    device = next(model.parameters()).device
    return torch.cat(buffers) if buffers else torch.zeros(0, dtype=torch.float64, device=device)


def set_buffers(model: nn.Module, vector: Tensor) -> None:
    """Set the running statistics to what `buffer_vector` returned."""
    start = 0
    for buffer in model.buffers():
        buffer.copy_(vector[start : start + buffer.numel()].view(buffer.shape))
        start += buffer.numel()


def average_buffers(model: nn.Module) -> None:
    """Average the running statistics over the ranks. A collective."""
    if dist.is_initialized():
        vector = buffer_vector(model)
        dist.all_reduce(vector)
        set_buffers(model, vector / dist.get_world_size())


def gather_buffers(model: nn.Module) -> list[Tensor]:
    """Every rank's running statistics, in the order of the ranks. A collective."""
    vector = buffer_vector(model)
    if not dist.is_initialized():
        return [vector]
    vectors = [torch.empty_like(vector) for _ in range(dist.get_world_size())]
    dist.all_gather(vectors, vector)
    return vectors


def load_buffers(model: nn.Module, vectors: list[Tensor]) -> None:
    """Restore this rank's running statistics, or set them to the average if the number of ranks has changed."""
    world_size = dist.get_world_size() if dist.is_initialized() else 1
    rank = dist.get_rank() if dist.is_initialized() else 0
    vector = vectors[rank] if len(vectors) == world_size else torch.stack(vectors).mean(dim=0)
    set_buffers(model, vector.to(next(model.parameters()).device))


def from_rank_zero(decide: Callable[[], T]) -> T:
    """Call a function on rank 0 and return its result on all ranks. A collective."""
    if not dist.is_initialized():
        return decide()
    decided = [decide() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(decided)
    return decided[0]  # type: ignore[return-value]


def from_all_ranks(value: T) -> list[T]:
    """Gather a value from every rank, in the order of the ranks. A collective."""
    if not dist.is_initialized():
        return [value]
    values: list[T | None] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]
