"""The decisions that all ranks make together between steps: stop, save, check for a preemption, end a failed run.

The ranks decide about every `SECONDS_BETWEEN_DECISIONS`: a signal is obeyed soon, however long a step takes, and a GPU
rarely has to be waited for. With each decision, they agree on the number of steps until the next one.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from vgg_ddp.worker.metrics import Sums

SECONDS_BETWEEN_DECISIONS = 0.25
# One step that was measured as too short must not put off the next decision for long.
MAX_GROWTH = 4
# If steps become slow, as when the storage of streamed images does, the next decision must not be far away.
MAX_STEPS = 32
SECONDS_BETWEEN_PREEMPTION_CHECKS = 1.0
# Short epochs are not worth a checkpoint each.
SECONDS_BETWEEN_EPOCH_END_CHECKPOINTS = 10.0


@dataclass(frozen=True)
class Decision:
    """A decision of all ranks, the same on each, except for the mean loss.

    Attributes:
        stop: save, then end the run.
        give_up: end the run, because its folder cannot be written or an image cannot be decoded.
        save: a checkpoint is due.
        save_at_epoch_end: a checkpoint is due if this was the last step of an epoch.
        check_preemption: ask Ray whether a node is about to be preempted.
        bad_step: the first step whose loss was not finite, or None.
        mean_loss: this rank's mean loss since the epoch started.
    """

    stop: bool = False
    give_up: bool = False
    save: bool = False
    save_at_epoch_end: bool = False
    check_preemption: bool = False
    bad_step: int | None = None
    mean_loss: float = field(default=math.nan, compare=False)


class Control:
    """Reduces the requests of all ranks to one decision.

    Args:
        device: where the rank trains.
        checkpoint_every_seconds: time between checkpoints.
        stop_requested: returns whether this rank was asked to stop the run; None if only another rank can be asked.
        failed: returns whether this rank can no longer write the run folder or decode an image.
        arrive: called right before this rank meets the others in a decision.
    """

    def __init__(
        self,
        device: torch.device,
        checkpoint_every_seconds: float,
        stop_requested: Callable[[], bool] | None,
        failed: Callable[[], bool],
        arrive: Callable[[], None] = lambda: None,
    ) -> None:
        self._checkpoint_every_seconds = checkpoint_every_seconds
        self._stop_requested = stop_requested
        self._failed = failed
        self._arrive = arrive
        self._preemption: tuple[object, ...] | None = None
        self._saved_at = self._checked_at = time.monotonic()
        self._first_bad_step = torch.full((), math.inf, dtype=torch.float64, device=device)
        # A copy from pinned memory does not wait for the GPU.
        self._votes = torch.ones(6, dtype=torch.float64, pin_memory=device.type == "cuda")
        self._pace = Pace(min(SECONDS_BETWEEN_DECISIONS, checkpoint_every_seconds))

    def watch(self, step: int | Tensor, loss: Tensor) -> None:
        """Remember the first step whose loss is not finite; on the device, without a sync.

        In a CUDA graph, the step is a number on the device, int64 ().
        """
        # float64 holds every step exactly.
        bad_step = step.double() if isinstance(step, Tensor) else torch.full_like(self._first_bad_step, step)
        bad_step.masked_fill_(torch.isfinite(loss.detach()), math.inf)
        torch.minimum(self._first_bad_step, bad_step, out=self._first_bad_step)

    def is_due(self, is_last: bool) -> bool:
        """Call once at the start of each step: whether the ranks decide after it, as after the last one of an epoch."""
        return self._pace.count_step() or is_last

    def mark_saved(self) -> None:
        """Restart the timer for the next checkpoint."""
        self._saved_at = time.monotonic()

    def is_new_preemption(self, *preemption: object) -> bool:
        """Whether this preemption differs from that of the previous call."""
        is_new = preemption != self._preemption
        self._preemption = preemption
        return is_new

    def decide(self, sums: Sums) -> Decision:
        """Agree with the other ranks. A collective (every rank must call it) and a device-to-host sync.

        Args:
            sums: this rank's sums of the epoch; copied to the host together with the decision.
        """
        now = time.monotonic()
        requests, steps = self._requests(now), self._pace.propose()
        values = self._first_bad_step.view(1)
        if dist.is_initialized():
            # One reduction for everything: a request's minimum is 0 if any rank makes it.
            self._votes.copy_(torch.tensor([steps, *(not request for request in requests)], dtype=torch.float64))
            values = torch.cat([values, self._votes.to(values.device, non_blocking=True)])
            self._arrive()
            dist.all_reduce(values, op=dist.ReduceOp.MIN)
        loss, _, count, bad_step, *votes = torch.cat([sums.values, values]).tolist()
        if votes:
            steps, requests = int(votes[0]), [vote == 0 for vote in votes[1:]]
        self._pace.restart(steps)
        stop, give_up, save, save_at_epoch_end, check_preemption = requests
        if check_preemption:
            self._checked_at = now
        first_bad_step = None if math.isinf(bad_step) else int(bad_step)
        mean_loss = loss / count if count else math.nan
        return Decision(stop, give_up, save, save_at_epoch_end, check_preemption, first_bad_step, mean_loss)

    def _requests(self, now: float) -> list[bool]:
        """What this rank wants, in the order of a decision's attributes."""
        unsaved_seconds = now - self._saved_at
        return [
            self._stop_requested is not None and self._stop_requested(),
            self._failed(),
            unsaved_seconds >= self._checkpoint_every_seconds,
            unsaved_seconds >= SECONDS_BETWEEN_EPOCH_END_CHECKPOINTS,
            now - self._checked_at >= SECONDS_BETWEEN_PREEMPTION_CHECKS,
        ]


class Pace:
    """How many steps to take until the next decision.

    Args:
        seconds: wanted time between decisions.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._agreed, self._taken = 1, 0
        self._started = time.monotonic()
        self._last_step_seconds = math.inf

    def count_step(self) -> bool:
        """Count a step that starts now; whether it is the last one before a decision."""
        if not self._taken:
            self._started = time.monotonic()
        self._taken += 1
        return self._taken >= self._agreed

    def propose(self) -> int:
        """Steps until the decision after this one; called when the GPU may still be busy with the steps before it.

        Their time is then not known yet, but that of the steps before the previous decision is.
        """
        step_seconds = max(self._last_step_seconds, self._step_seconds())
        most = min(MAX_STEPS, MAX_GROWTH * self._agreed)
        return most if step_seconds * most <= self._seconds else max(1, int(self._seconds / step_seconds))

    def restart(self, agreed: int) -> None:
        """Start counting again, up to the agreed number of steps; called when the GPU has finished all steps."""
        self._last_step_seconds = self._step_seconds()
        self._agreed, self._taken = agreed, 0

    def _step_seconds(self) -> float:
        return (time.monotonic() - self._started) / max(1, self._taken)
