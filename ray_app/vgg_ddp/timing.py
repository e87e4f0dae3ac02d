"""Where the time of a step goes, as seen by one rank."""

import time
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import nn

Phase = Literal["data", "compute", "communication", "checkpoint"]


class StepClock:
    """Splits steps into phases, on a GPU by events in its own queue, which no step waits for.

    Communication is what the backward pass does not hide: from this rank's last gradient until the gradients of all are
    averaged, and the agreement of all ranks after a step. To wait for a slower rank counts as communication, too.
    """

    def __init__(self, device: torch.device, module: nn.Module) -> None:
        self._on_gpu = device.type == "cuda"
        self._marks: list[tuple[Phase | None, float | torch.cuda.Event]] = []
        # The gradients of the first parameters come last.
        last = next(parameter for parameter in module.parameters() if parameter.requires_grad)
        last.register_hook(lambda _: self.mark("compute"))

    def start(self) -> None:
        """Begin to measure a step."""
        self._marks = [(None, self._now())]

    def mark(self, phase: Phase) -> None:
        """Say what the time since the last mark was spent on; nothing outside of a step that is measured."""
        if self._marks:
            self._marks.append((phase, self._now()))

    def stop(self) -> dict[str, float]:
        """Seconds of each phase; nothing if no step was measured. On a GPU after a device-to-host sync."""
        marks, self._marks = self._marks, []
        seconds: dict[str, float] = dict.fromkeys(get_args(Phase), 0.0) if marks else {}
        for (_, earlier), (phase, later) in pairwise(marks):
            assert phase is not None
            seconds[phase] += _seconds_between(earlier, later)
        return seconds

    def _now(self) -> "float | torch.cuda.Event":
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def _seconds_between(earlier: "float | torch.cuda.Event", later: "float | torch.cuda.Event") -> float:
    if isinstance(earlier, float) and isinstance(later, float):
        return later - earlier
    assert not isinstance(earlier, float) and not isinstance(later, float)
    later.synchronize()
    milliseconds: float = earlier.elapsed_time(later)
    return milliseconds / 1000
