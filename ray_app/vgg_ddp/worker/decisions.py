"""The decisions that all ranks make together between steps: stop, save, check for a preemption, end a failed run."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

STEPS_BETWEEN_DECISIONS = {"cpu": 1, "cuda": 20}
SECONDS_BETWEEN_PREEMPTION_CHECKS = 1.0
# Short epochs are not worth a checkpoint each.
SECONDS_BETWEEN_EPOCH_END_CHECKPOINTS = 10.0


@dataclass(frozen=True)
class Decision:
    """A decision of all ranks, the same on each.

    Attributes:
        stop: save, then end the run.
        give_up: end the run, because its folder cannot be written or an image cannot be decoded.
        save: a checkpoint is due.
        save_at_epoch_end: a checkpoint is due if this was the last step of an epoch.
        check_preemption: ask Ray whether a node is about to be preempted.
        bad_step: the first step whose loss was not finite, or None.
    """

    stop: bool = False
    give_up: bool = False
    save: bool = False
    save_at_epoch_end: bool = False
    check_preemption: bool = False
    bad_step: int | None = None


class Control:
    """Reduces the requests of all ranks to one decision.

    Args:
        device: where the rank trains; determines how often the ranks decide.
        checkpoint_every_seconds: time between checkpoints.
        stop_requested: returns whether this rank was asked to stop the run; None if only another rank can be asked.
        failed: returns whether this rank can no longer write the run folder or decode an image.
    """

    def __init__(
        self,
        device: torch.device,
        checkpoint_every_seconds: float,
        stop_requested: Callable[[], bool] | None,
        failed: Callable[[], bool],
    ) -> None:
        self.steps_between_decisions = STEPS_BETWEEN_DECISIONS[device.type]
        self._checkpoint_every_seconds = checkpoint_every_seconds
        self._stop_requested = stop_requested
        self._failed = failed
        self._preemption: tuple[object, ...] | None = None
        self._saved_at = self._checked_at = time.monotonic()
        self._first_bad_step = torch.full((), math.inf, dtype=torch.float64, device=device)

    def watch(self, step: int | Tensor, loss: Tensor) -> None:
        """Remember the first step whose loss is not finite; on the device, without a sync.

        In a CUDA graph, the step is a number on the device, int64 ().
        """
        # float64 holds every step exactly.
        bad_step = step.double() if isinstance(step, Tensor) else torch.full_like(self._first_bad_step, step)
        bad_step.masked_fill_(torch.isfinite(loss.detach()), math.inf)
        torch.minimum(self._first_bad_step, bad_step, out=self._first_bad_step)

    def mark_saved(self) -> None:
        """Restart the timer for the next checkpoint."""
        self._saved_at = time.monotonic()

    def is_new_preemption(self, *preemption: object) -> bool:
        """Whether this preemption differs from that of the previous call."""
        is_new = preemption != self._preemption
        self._preemption = preemption
        return is_new

    def decide(self) -> Decision:
        """Agree with the other ranks. A collective (every rank must call it) and a device-to-host sync."""
        now = time.monotonic()
        unsaved_seconds = now - self._saved_at
        requests = (
            self._stop_requested is not None and self._stop_requested(),
            self._failed(),
            unsaved_seconds >= self._checkpoint_every_seconds,
            unsaved_seconds >= SECONDS_BETWEEN_EPOCH_END_CHECKPOINTS,
            now - self._checked_at >= SECONDS_BETWEEN_PREEMPTION_CHECKS,
        )
        # One reduction for everything: a request's minimum is 0 if any rank makes it; the last value is the bad step.
        votes = torch.tensor([0.0 if request else 1.0 for request in requests], dtype=torch.float64)
        votes = torch.cat([votes.to(self._first_bad_step.device), self._first_bad_step.view(1)])
        if dist.is_initialized():
            dist.all_reduce(votes, op=dist.ReduceOp.MIN)
        *minima, bad_step = votes.tolist()
        stop, give_up, save, save_at_epoch_end, check_preemption = (minimum == 0 for minimum in minima)
        if check_preemption:
            self._checked_at = now
        first_bad_step = None if math.isinf(bad_step) else int(bad_step)
        return Decision(stop, give_up, save, save_at_epoch_end, check_preemption, first_bad_step)
