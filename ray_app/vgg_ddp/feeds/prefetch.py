"""Batches from host memory: copied to the GPU while it works on the previous batch, and augmented there.

The host never waits for the GPU here: copies start from pinned memory, in a stream of their own, and only the GPU's
streams wait for each other.
"""

from collections.abc import Iterator
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor

from vgg_ddp.feeds.augment import EpochPlan, augment
from vgg_ddp.feeds.feed import Batches

# Tensors in host memory, or the same ones on the device.
Batch = TypeVar("Batch", bound=tuple[Tensor, ...])


def prefetch(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Copy each batch to the GPU, one batch ahead of the one in use. On a CPU, the batches themselves."""
    if device.type == "cpu":
        yield from batches
        return
    copying = _copy_stream(device)
    ahead: tuple[Batch, torch.cuda.Event] | None = None
    for batch in batches:
        started = _start_copy(batch, device, copying)
        if ahead:
            yield _receive(*ahead, device)
        ahead = started
    if ahead:
        yield _receive(*ahead, device)


@cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream for copies: always the same, because torch keeps freed memory for the stream that allocated it."""
    return torch.cuda.Stream(device)


def _start_copy(batch: Batch, device: torch.device, copying: torch.cuda.Stream) -> tuple[Batch, torch.cuda.Event]:
    """The batch on the GPU, and the event after which it is complete."""
    # torch's allocator of pinned memory reuses a block only after its copy is done.
    pinned = [values.pin_memory() for values in batch]
    with torch.cuda.stream(copying):
        copies = type(batch)(values.to(device, non_blocking=True) for values in pinned)
    return copies, copying.record_event()


def _receive(copies: Batch, copied: torch.cuda.Event, device: torch.device) -> Batch:
    """Let the stream in use wait for a batch from the other stream."""
    stream = torch.cuda.current_stream(device)
    stream.wait_event(copied)
    for values in copies:
        # Otherwise, the next copy could overwrite them while this stream still reads them.
        values.record_stream(stream)
    return copies


def augmented(
    batches: Iterator[tuple[Tensor, Tensor, Tensor]], plan: EpochPlan, fill: Tensor, device: torch.device
) -> Batches:
    """Augment batches on the device.

    A batch on the host has the images, uint8 (n, H, W, 3), their labels, int64 (n,), and their indices in the training
    set, int64 (n,), by which the epoch's plan, on the device, knows them.
    """
    for images, labels, index in prefetch(batches, device):
        everything = torch.arange(len(labels), device=device)
        yield augment(images, everything, plan.of(index), fill), labels
