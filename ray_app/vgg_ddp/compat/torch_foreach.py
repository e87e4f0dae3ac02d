"""Element-wise operations on lists of tensors, in one kernel on a GPU. Tested with torch 2.14.1.

No longer needed once torch documents these functions; https://docs.pytorch.org/docs/stable/torch.html lists others of
their kind as a beta API.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vgg_ddp.compat.fallback import log_fallback

Tensors = Sequence[Tensor]


def _function(name: str) -> Callable[..., Any] | None:
    function: Callable[..., Any] | None = getattr(torch, name, None)
    if function is None:
        log_fallback(f"torch.{name}", "Muon needs more kernels on GPUs")
    return function


def mul_(tensors: Tensors, factor: float) -> None:
    """Multiply each tensor in place."""
    if function := _function("_foreach_mul_"):
        function(tensors, factor)
    else:
        for tensor in tensors:
            tensor.mul_(factor)


def add_(tensors: Tensors, others: Tensors) -> None:
    """Add the others in place, pair by pair."""
    if function := _function("_foreach_add_"):
        function(tensors, others)
    else:
        for tensor, other in zip(tensors, others, strict=True):
            tensor.add_(other)


def add(tensors: Tensors, others: Tensors, alpha: float) -> list[Tensor]:
    """The sums of each tensor and `alpha` times the other, pair by pair."""
    if function := _function("_foreach_add"):
        return list(function(tensors, others, alpha=alpha))
    return [tensor.add(other, alpha=alpha) for tensor, other in zip(tensors, others, strict=True)]


def norm(tensors: Tensors) -> list[Tensor]:
    """The norm of each tensor, ()."""
    if function := _function("_foreach_norm"):
        return list(function(tensors))
    return [tensor.norm() for tensor in tensors]
