"""What all ranks decide together between two steps: stop, save, look for a preemption, give up on a bad loss."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

STEPS_BETWEEN_DECISIONS = {"cpu": 1, "cuda": 20}
SECONDS_BETWEEN_PREEMPTION_CHECKS = 1.0
# Epochs can be much shorter than a checkpoint is worth: then only some of their ends are saved.
SECONDS_BETWEEN_EPOCH_END_CHECKPOINTS = 10.0


@dataclass(frozen=True)
class Decision:
    """The same on every rank.

    Attributes:
        stop: save, then end the run.
        give_up: end the run, since its folder cannot be written or an image cannot be read.
        save: a checkpoint is due.
        save_at_epoch_end: a checkpoint is due if this was the last step of an epoch.
        check_preemption: ask Ray whether a node is about to go.
        show: say how far the run is.
        bad_step: first step whose loss was not finite, or None.
    """

    stop: bool = False
    give_up: bool = False
    save: bool = False
    save_at_epoch_end: bool = False
    check_preemption: bool = False
    show: bool = False
    bad_step: int | None = None


class Control:
    """Collects one rank's wishes and agrees on them with the other ranks."""

    def __init__(
        self,
        device: torch.device,
        checkpoint_every_seconds: float,
        stop_requested: Callable[[], bool] | None,
        failed: Callable[[], bool],
        live_seconds: float | None = None,
    ) -> None:
        self.steps_between_decisions = STEPS_BETWEEN_DECISIONS[device.type]
        self._checkpoint_every_seconds = checkpoint_every_seconds
        self._stop_requested = stop_requested
        self._failed = failed
        self._preemption: tuple[object, ...] | None = None
        self._live_seconds = math.inf if live_seconds is None else live_seconds
        self._saved_at = self._checked_at = self._shown_at = time.monotonic()
        self._first_bad_step = torch.full((), math.inf, dtype=torch.float64, device=device)

    def watch(self, step: int, loss: Tensor) -> None:
        """Remember the first step whose loss is not finite; on the device, without a sync."""
        # In float64, which holds every step exactly.
        here = torch.full_like(self._first_bad_step, step)
        here.masked_fill_(torch.isfinite(loss.detach()), math.inf)
        self._first_bad_step = torch.minimum(self._first_bad_step, here)

    def mark_saved(self) -> None:
        self._saved_at = time.monotonic()

    def is_new_preemption(self, *preemption: object) -> bool:
        """Whether this preemption differs from the last one asked about."""
        is_new = preemption != self._preemption
        self._preemption = preemption
        return is_new

    def decide(self) -> Decision:
        """Agree with the other ranks. A collective (every rank must call it) and a device-to-host sync."""
        now = time.monotonic()
        unsaved_seconds = now - self._saved_at
        wishes = (
            self._stop_requested is not None and self._stop_requested(),
            self._failed(),
            unsaved_seconds >= self._checkpoint_every_seconds,
            unsaved_seconds >= SECONDS_BETWEEN_EPOCH_END_CHECKPOINTS,
            now - self._checked_at >= SECONDS_BETWEEN_PREEMPTION_CHECKS,
            now - self._shown_at >= self._live_seconds,
        )
        # One reduction for all: the minimum is 0 where any rank wishes it, and the first bad step of any rank.
        votes = torch.tensor([0.0 if wish else 1.0 for wish in wishes], dtype=torch.float64)
        votes = torch.cat([votes.to(self._first_bad_step.device), self._first_bad_step.view(1)])
        if dist.is_initialized():
            dist.all_reduce(votes, op=dist.ReduceOp.MIN)
        *nobody_wishes, bad_step = votes.tolist()
        stop, give_up, save, save_at_epoch_end, check, show = (not nobody for nobody in nobody_wishes)
        if check:
            self._checked_at = now
        if show:
            self._shown_at = now
        first_bad_step = None if math.isinf(bad_step) else int(bad_step)
        return Decision(stop, give_up, save, save_at_epoch_end, check, show, first_bad_step)
