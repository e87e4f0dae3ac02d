"""What Ray's metrics endpoints show of a run, for Prometheus and Grafana."""

from collections.abc import Mapping

from ray.util.metrics import Gauge

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
    "workers": "Workers that train together.",
}


class Gauges:
    """The gauges of one run: `ray_vgg_loss{run="..."}` and so on. Rank 0 sets them for all workers."""

    def __init__(self, run_name: str) -> None:
        self._gauges = {name: Gauge(f"vgg_{name}", text, tag_keys=("run",)) for name, text in GAUGES.items()}
        for gauge in self._gauges.values():
            gauge.set_default_tags({"run": run_name})

    def set(self, values: Mapping[str, float]) -> None:
        """Set some of the gauges. Takes microseconds; another thread of Ray's sends them."""
        for name, value in values.items():
            self._gauges[name].set(value)
