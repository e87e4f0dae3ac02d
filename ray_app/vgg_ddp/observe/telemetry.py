"""What a rank reports during training: Ray metrics, progress, the phases of a step, a profile."""

import posixpath
import resource
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import nn

from vgg_ddp.observe.gauges import Gauges, RankMetrics
from vgg_ddp.observe.profiler import StepProfiler
from vgg_ddp.run.files import STARTUP_FILE, write_progress, write_startup
from vgg_ddp.run.notes import noted
from vgg_ddp.run.saver import Saver
from vgg_ddp.run.storage import Folder

# Writing to an object store is slow and costs money.
SECONDS_BETWEEN_PROGRESS = {"local": 0.5, "remote": 10.0}
Phase = Literal["data", "compute", "communication", "checkpoint"]
Moment = float | torch.cuda.Event


class Telemetry:
    """One rank's metrics; rank 0 also reports for the whole run.

    Attributes:
        phases: end time of each start-up phase; empty once the first step has written them to startup.json.
    """

    def __init__(
        self,
        run: Folder,
        saver: Saver,
        rank: int,
        device: torch.device,
        module: nn.Module,
        under_ray: bool,
        profiled: bool,
    ) -> None:
        self._run, self._saver, self._rank, self._device = run, saver, rank, device
        name = posixpath.basename(run.path)
        self._noted: set[str] = set()
        self._gauges: Gauges | None = None
        self._rank_metrics: RankMetrics | None = None
        self._profiler: StepProfiler | None = None
        with self._gauges_optional():
            self._gauges = Gauges(name) if under_ray and rank == 0 else None
            self._rank_metrics = RankMetrics(name, rank) if under_ray else None
        self._clock = StepClock(device, module)
        with noted("the steps cannot be profiled"):
            self._profiler = StepProfiler(run, saver, device) if profiled and rank == 0 else None
        self.phases: dict[str, float] = {}
        self._progress_seconds = SECONDS_BETWEEN_PROGRESS["local" if run.is_local else "remote"]
        self._progress_at, self._steps_since_progress = time.monotonic(), 0
        self.show({"diverged": 0.0})

    def _gauges_optional(self) -> AbstractContextManager[None]:
        return noted("the metrics for Prometheus cannot be updated", self._noted)

    def start_step(self, measured: bool) -> None:
        """Start a step; if `measured`, its time is split into phases."""
        if measured and self._rank_metrics:
            self._clock.start()

    def mark(self, phase: Phase) -> None:
        """Attribute the time of this step since the last mark to a phase."""
        self._clock.mark(phase)

    def end_step(self) -> None:
        """End a step."""
        self._steps_since_progress += 1
        if self._profiler:
            self._profiler.step()
        if self.phases:
            self._write_startup()

    def close(self) -> None:
        """End the reports of this rank, after its last step."""
        if self._profiler:
            self._profiler.close()

    def _write_startup(self) -> None:
        """Write the end times of all start-up phases. A device-to-host sync, once per run."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        phases, self.phases = self.phases | {"first step": time.time()}, {}
        if self._rank == 0:
            self._saver.write_newest(STARTUP_FILE, lambda: write_startup(self._run, phases))

    def show(self, values: Mapping[str, float]) -> None:
        """Set gauges of the run."""
        if self._gauges:
            with self._gauges_optional():
                self._gauges.set(values)

    def show_rank(self) -> None:
        """Report the phases of the measured step and the memory in use. Waits for nothing."""
        if self._rank_metrics:
            with self._gauges_optional():
                self._rank_metrics.observe(self._clock.stop())
                self._rank_metrics.set({"memory_bytes": own_memory_bytes()})
                if self._device.type == "cuda":
                    self._rank_metrics.set({"gpu_memory_bytes": torch.cuda.max_memory_allocated(self._device)})

    def progress_is_due(self) -> bool:
        """Whether it is time for rank 0 to write the run's progress; never on other ranks."""
        return self._rank == 0 and time.monotonic() - self._progress_at >= self._progress_seconds

    def write_progress(self, step: int, steps_per_epoch: int, global_batch_size: int, loss: float) -> None:
        """Write the progress of the run for the driver's progress bar, in the background."""
        now = time.monotonic()
        speed = self._steps_since_progress * global_batch_size / (now - self._progress_at)
        self._progress_at, self._steps_since_progress = now, 0
        progress = {"step": step, "steps_per_epoch": steps_per_epoch, "loss": loss, "images_per_second": speed}
        progress["time"] = time.time()
        self._saver.write_in_background(lambda: write_progress(self._run, progress))


class StepClock:
    """Splits steps into phases; on a GPU, with events in its stream, which nothing waits for.

    A GPU may still have to reach the last events of a step when the step is stopped. So its times are given out one
    step later: the ranks' decision after that step has waited for the GPU.

    Communication is the part that does not overlap with the backward pass: from this rank's last gradient until all
    gradients are averaged, and the ranks' decision after a step. Waiting for a slower rank counts as communication.
    """

    def __init__(self, device: torch.device, module: nn.Module) -> None:
        self._on_gpu = device.type == "cuda"
        self._marks: list[tuple[Phase | None, Moment]] = []
        self._stopped = self._marks
        # The first parameter gets its gradient last.
        last = next(parameter for parameter in module.parameters() if parameter.requires_grad)
        last.register_hook(lambda _: self.mark("compute"))

    def start(self) -> None:
        """Start measuring a step."""
        self._marks = [(None, self._now())]

    def mark(self, phase: Phase) -> None:
        """Attribute the time since the last mark to a phase; no effect unless a step is being measured."""
        if self._marks and not (self._on_gpu and torch.cuda.is_current_stream_capturing()):
            self._marks.append((phase, self._now()))

    def stop(self) -> dict[str, float]:
        """Seconds of each phase; empty if no step was measured. On a GPU, those of the previously stopped step."""
        marks, self._marks = self._marks, []
        if self._on_gpu:
            marks, self._stopped = self._stopped, marks
        seconds: dict[str, float] = dict.fromkeys(get_args(Phase), 0.0) if marks else {}
        for (_, earlier), (phase, later) in pairwise(marks):
            assert phase is not None
            seconds[phase] += _seconds_between(earlier, later)
        return seconds

    def _now(self) -> Moment:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def _seconds_between(earlier: Moment, later: Moment) -> float:
    if isinstance(earlier, float) and isinstance(later, float):
        return later - earlier
    assert not isinstance(earlier, float) and not isinstance(later, float)
    milliseconds: float = earlier.elapsed_time(later)
    return milliseconds / 1000


def own_memory_bytes() -> int:
    """Memory of this process in bytes, excluding memory shared with other processes, such as Ray's object store.

    macOS does not report this; there, it is the peak so far, including shared memory.
    """
    try:
        with open("/proc/self/statm") as file:
            _, resident, shared, *_ = map(int, file.read().split())
    except OSError:
        # In bytes on macOS, in KiB on Linux.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return (resident - shared) * resource.getpagesize()
