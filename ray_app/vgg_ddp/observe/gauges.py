"""Ray metrics of a run, for Prometheus and Grafana."""

import math
import time
from collections.abc import Mapping

from ray.util.metrics import Counter, Gauge, Histogram

GAUGES = {
    "epoch": "Finished epochs.",
    "step": "Optimizer steps taken.",
    "loss": "Mean training loss of the last finished epoch.",
    "train_accuracy": "Training accuracy of the last finished epoch, as a fraction.",
    "validation_loss": "Mean validation loss after the last finished epoch, of a run with a validation split.",
    "validation_accuracy": "Validation accuracy after the last finished epoch, as a fraction, of such a run.",
    "test_loss": "Mean test loss after the last finished epoch; with a validation split, at the end.",
    "test_accuracy": "Test accuracy after the last finished epoch, as a fraction; with a validation split, at the end.",
    "lr": "Learning rate of the last step of the last finished epoch.",
    "images_per_second": "Training images per second over all workers.",
    "seconds": "Training time of the last finished epoch, in seconds.",
    "time": "End of the last finished epoch, in seconds since 1970.",
    "workers": "Number of workers.",
    "diverged": "1 once the loss is not finite, else 0.",
    "checkpoint_time": "When the newest checkpoint was taken, or the workers started, in seconds since 1970.",
    "checkpoint_every_seconds": "Wanted seconds between checkpoints.",
}
RANK_GAUGES = {
    "memory_bytes": "Memory of a worker in bytes, excluding memory shared with other processes.",
    "gpu_memory_bytes": "Peak GPU memory of a worker so far, in bytes.",
}
SECONDS_BETWEEN_REPEATS = 0.5
STEP_SECONDS = "step_seconds"
PHASE_SECONDS = "phase_seconds"
# 0.5 ms to 80 s, ten buckets per factor of ten: a quantile is at most 28% too high.
STEP_BOUNDARIES = [
    float(f"{digits}e{exponent}")
    for exponent in range(-4, 2)
    for digits in (1, 1.25, 1.6, 2, 2.5, 3.15, 4, 5, 6.3, 8)
    if exponent > -4 or digits >= 5
]


class Gauges:
    """The gauges of one run: `ray_vgg_loss{run="..."}` and so on. Rank 0 sets them for all workers."""

    def __init__(self, run_name: str) -> None:
        self._gauges = {name: Gauge(f"vgg_{name}", text, tag_keys=("run",)) for name, text in GAUGES.items()}
        for gauge in self._gauges.values():
            gauge.set_default_tags({"run": run_name})
        self._values: dict[str, float] = {}
        self._sent_all_at = 0.0

    def set(self, values: Mapping[str, float]) -> None:
        """Set some of the gauges, except to nan. Takes microseconds, because a thread of Ray sends them."""
        values = {name: value for name, value in values.items() if not math.isnan(value)}
        self._values.update(values)
        # Ray exports a gauge in only one report unless it is set again.
        now = time.monotonic()
        if now - self._sent_all_at >= SECONDS_BETWEEN_REPEATS:
            values, self._sent_all_at = self._values, now
        for name, value in values.items():
            self._gauges[name].set(value)


class RankMetrics:
    """Metrics of each rank: `ray_vgg_step_seconds_bucket{run="...", rank="0", phase="compute"}` and so on.

    The steps since the last report (every 10 s) are lost when Ray ends a worker:
    https://github.com/ray-project/ray/issues/66178.
    """

    def __init__(self, run_name: str, rank: int) -> None:
        tags = {"run": run_name, "rank": str(rank)}
        self._gauges = {
            name: Gauge(f"vgg_{name}", text, tag_keys=("run", "rank")) for name, text in RANK_GAUGES.items()
        }
        for gauge in self._gauges.values():
            gauge.set_default_tags(tags)
        self._step_seconds = Histogram(
            f"vgg_{STEP_SECONDS}",
            "Seconds of a step by phase: data, compute, communication or checkpoint.",
            boundaries=STEP_BOUNDARIES,
            tag_keys=("run", "rank", "phase"),
        )
        # Ray exports the sum of a histogram only at the resolution of its buckets.
        self._phase_seconds = Counter(
            f"vgg_{PHASE_SECONDS}",
            "Total seconds by phase of the steps that the histogram counts.",
            tag_keys=("run", "rank", "phase"),
        )
        for metric in (self._step_seconds, self._phase_seconds):
            metric.set_default_tags(tags)

    def observe(self, seconds_by_phase: Mapping[str, float]) -> None:
        """Record a step's seconds by phase."""
        for phase, seconds in seconds_by_phase.items():
            self._step_seconds.observe(seconds, {"phase": phase})
            # Ray rejects an increment of zero.
            if seconds:
                self._phase_seconds.inc(seconds, {"phase": phase})

    def set(self, values: Mapping[str, float]) -> None:
        """Set some of the gauges."""
        for name, value in values.items():
            self._gauges[name].set(value)
