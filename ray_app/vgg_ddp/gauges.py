"""What Ray's metrics endpoints show of a run, for Prometheus and Grafana."""

import time
from collections.abc import Mapping

from ray.util.metrics import Counter, Gauge, Histogram

GAUGES = {
    "epoch": "Finished epochs.",
    "step": "Optimizer steps done.",
    "loss": "Mean training loss of the last finished epoch.",
    "train_accuracy": "Training accuracy of the last finished epoch, as a fraction.",
    "test_loss": "Mean test loss after the last finished epoch.",
    "test_accuracy": "Test accuracy after the last finished epoch, as a fraction.",
    "lr": "Learning rate of the last step of the last finished epoch.",
    "images_per_second": "Training images a second over all workers.",
    "seconds": "Training time of the last finished epoch, in seconds.",
    "time": "When the last finished epoch was over, in seconds since 1970.",
    "workers": "Workers that train together.",
    "diverged": "1 once the loss is not finite, else 0.",
}
RANK_GAUGES = {
    "memory_bytes": "Memory that a worker has for itself, without what it shares with others.",
    "gpu_memory_bytes": "The most GPU memory that a worker had in use so far.",
}
SECONDS_BETWEEN_REPEATS = 0.5
STEP_SECONDS = "step_seconds"
PHASE_SECONDS = "phase_seconds"
STEP_BOUNDARIES = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0]


class Gauges:
    """The gauges of one run: `ray_vgg_loss{run="..."}` and so on. Rank 0 sets them for all workers."""

    def __init__(self, run_name: str) -> None:
        self._gauges = {name: Gauge(f"vgg_{name}", text, tag_keys=("run",)) for name, text in GAUGES.items()}
        for gauge in self._gauges.values():
            gauge.set_default_tags({"run": run_name})
        self._values: dict[str, float] = {}
        self._sent_all_at = 0.0

    def set(self, values: Mapping[str, float]) -> None:
        """Set some of the gauges. Takes microseconds; another thread of Ray's sends them."""
        self._values.update(values)
        # Ray shows a gauge that is not set again for one report only.
        now = time.monotonic()
        if now - self._sent_all_at >= SECONDS_BETWEEN_REPEATS:
            values, self._sent_all_at = self._values, now
        for name, value in values.items():
            self._gauges[name].set(value)


class RankMetrics:
    """What differs from rank to rank: `ray_vgg_step_seconds_bucket{run="...", rank="0", phase="compute"}` and so on.

    The steps since the last report (every 10 s) are lost when Ray ends a worker (ray-project/ray#66178).
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
            "Seconds of a step by what they were spent on: data, compute, communication or checkpoint.",
            boundaries=STEP_BOUNDARIES,
            tag_keys=("run", "rank", "phase"),
        )
        # Ray tells the sum of a histogram only as exactly as its buckets are narrow.
        self._phase_seconds = Counter(
            f"vgg_{PHASE_SECONDS}",
            "Seconds of the steps that the histogram counts, by what they were spent on.",
            tag_keys=("run", "rank", "phase"),
        )
        for metric in (self._step_seconds, self._phase_seconds):
            metric.set_default_tags(tags)

    def observe(self, seconds_by_phase: Mapping[str, float]) -> None:
        """Count a step and its seconds by phase."""
        for phase, seconds in seconds_by_phase.items():
            self._step_seconds.observe(seconds, {"phase": phase})
            # Ray refuses to count nothing.
            if seconds:
                self._phase_seconds.inc(seconds, {"phase": phase})

    def set(self, values: Mapping[str, float]) -> None:
        """Set some of the gauges."""
        for name, value in values.items():
            self._gauges[name].set(value)
