"""What a rank shows of itself while it trains: metrics of Ray's, live progress, a profile."""

import posixpath
import resource
import time
from collections.abc import Mapping

import torch
from torch import nn

from vgg_ddp.gauges import Gauges, RankMetrics
from vgg_ddp.profiling import StepProfiler
from vgg_ddp.report import write_progress
from vgg_ddp.saving import Saver
from vgg_ddp.storage import Folder
from vgg_ddp.timing import Phase, StepClock


class Telemetry:
    """One rank's metrics; rank 0 speaks for the run as well."""

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
        self._run, self._saver, self._device = run, saver, device
        name = posixpath.basename(run.path)
        self._gauges = Gauges(name) if under_ray and rank == 0 else None
        self._rank_metrics = RankMetrics(name, rank) if under_ray else None
        self._clock = StepClock(device, module)
        self._profiler = StepProfiler(run, saver, device) if profiled and rank == 0 else None
        self._last_look = (time.monotonic(), 0)
        self.show({"diverged": 0.0})

    def start_step(self, measured: bool) -> None:
        """Begin a step, whose time is split into phases if it is to be measured."""
        if measured and self._rank_metrics:
            self._clock.start()

    def mark(self, phase: Phase) -> None:
        """Say what this step's time since the last mark was spent on."""
        self._clock.mark(phase)

    def end_step(self) -> None:
        """End a step."""
        if self._profiler:
            self._profiler.step()

    def show(self, values: Mapping[str, float]) -> None:
        """Set gauges of the run."""
        if self._gauges:
            self._gauges.set(values)

    def show_rank(self) -> None:
        """Send the split of the measured step, and the memory in use. On a GPU after a device-to-host sync."""
        if self._rank_metrics:
            self._rank_metrics.observe(self._clock.stop())
            self._rank_metrics.set({"memory_bytes": own_memory_bytes()})
            if self._device.type == "cuda":
                self._rank_metrics.set({"gpu_memory_bytes": torch.cuda.max_memory_allocated(self._device)})

    def write_live(self, images_done: int, position: Mapping[str, float]) -> None:
        """Write down how far the run is, for the driver's progress bar."""
        now = time.monotonic()
        last_look, last_images = self._last_look
        self._last_look = (now, images_done)
        speed = max(0, images_done - last_images) / (now - last_look)
        progress = {**position, "images_per_second": speed, "time": time.time()}
        self._saver.note_meanwhile(lambda: write_progress(self._run, progress))


def own_memory_bytes() -> int:
    """Memory of this process in bytes, without what it shares with others, such as Ray's object store.

    On macOS, which has no such file, the most that it had so far, with what it shares.
    """
    try:
        with open("/proc/self/statm") as file:
            _, resident, shared, *_ = map(int, file.read().split())
    except FileNotFoundError:
        # In bytes there, in KiB on Linux.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return (resident - shared) * resource.getpagesize()
