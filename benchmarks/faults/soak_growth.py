"""Judge whether the quantities of a soak grow."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Growth in an hour, with a fault a minute, that counts: in the unit of the quantity.
THRESHOLDS = {
    "memory MiB": 5.0,
    "CPU cores": 0.02,
    "open files": 5.0,
    "threads": 2.0,
    "processes": 1.0,
    "run folder MiB": 2.0,
    "run folder files": 1.0,
    # Until the cluster ends, Ray keeps the logs of all processes: about 50 files and 0.5 MiB a fault.
    "Ray's folder MiB": 100.0,
    "Ray's folder files": 6000.0,
    "checkpoints": 0.5,
    "object store MiB": 1.0,
    "seconds an epoch": 0.1,
}
# Standard deviations: a slope counts only if chance gives it in fewer than 1 of 200 soaks.
CERTAINTY = 2.6
LEAST_POINTS = 5


@dataclass(frozen=True)
class Growth:
    """How a quantity developed after the warm-up.

    Attributes:
        per_hour: median of the slopes between all pairs of points (Theil and Sen).
        surely_per_hour: lower end of the slope's confidence interval; -inf if there are too few points for one.
    """

    name: str
    first: float
    last: float
    per_hour: float
    surely_per_hour: float

    @property
    def verdict(self) -> str:
        if np.isinf(self.surely_per_hour):
            return "too short"
        return "GROWS" if self.surely_per_hour > THRESHOLDS[self.name.partition(",")[0]] else "flat"


def too_few(growths: Sequence[Growth]) -> str:
    """A problem if there are not enough samples to judge; empty if there are.

    The parts of a total may be few: some kinds of processes live only for a short time.
    """
    unknown = [growth.name for growth in growths if growth.verdict == "too short" and "," not in growth.name]
    if unknown or not growths:
        return f"too few undisturbed samples to judge: {', '.join(unknown) or 'everything'}"
    return ""


def judge(name: str, hours: Sequence[float], values: Sequence[float]) -> Growth:
    """The growth of a quantity, from its values at these times. `first` and `last` are medians of a tenth of them."""
    low, middle = slopes(hours, values)
    tenth = max(3, len(values) // 10)
    return Growth(name, statistics.median(values[:tenth]), statistics.median(values[-tenth:]), middle, low)


def slopes(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Theil and Sen's estimate of the slope: the lower end of its confidence interval, and the estimate.

    The interval is that of P. K. Sen, "Estimates of the Regression Coefficient Based on Kendall's Tau" (1968). It is
    unbounded for fewer than LEAST_POINTS points.
    """
    count = len(x)
    first, second = np.triu_indices(count, 1)
    difference = np.asarray(x)[second] - np.asarray(x)[first]
    found = np.sort((np.asarray(y)[second] - np.asarray(y)[first]) / difference)
    if count < LEAST_POINTS:
        return -np.inf, float(np.median(found)) if len(found) else 0.0
    margin = CERTAINTY * np.sqrt(count * (count - 1) * (2 * count + 5) / 18)
    low = int((len(found) - margin) / 2)
    return float(found[low]) if low >= 0 else -np.inf, float(np.median(found))


def print_table(growths: Sequence[Growth]) -> None:
    """A line per quantity; the parts of a total only where they grow, except those of the memory."""
    print(f"\n{'quantity':<36} {'warm':>9} {'end':>9} {'per hour':>9}  verdict")
    for growth in growths:
        if "," in growth.name and growth.verdict != "GROWS" and not growth.name.startswith("memory"):
            continue
        numbers = f"{growth.first:>9.2f} {growth.last:>9.2f} {growth.per_hour:>+9.2f}"
        print(f"{growth.name:<36} {numbers}  {growth.verdict}")
