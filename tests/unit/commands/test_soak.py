"""The soak's samples and verdicts, without training."""

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from benchmarks.faults.soak import Taken, growths
from benchmarks.faults.soak_growth import THRESHOLDS, judge, too_few
from benchmarks.faults.soak_samples import KEEP_MARK, MARK, MIB, Sampler
from support.command import wait_until

HOURS = [minute / 60 for minute in range(240)]
# Ray's agents set their title like this.
HOLD = """
import time
import ray._raylet
ray._raylet.setproctitle("ray::DashboardAgent")
files = [open(__file__) for _ in range(20)]
memory = bytearray(50 * 2**20)
print("ready", flush=True)
time.sleep(600)
"""


def noise(amplitude: float) -> Callable[[float], float]:
    rng = random.Random(0)
    return lambda value: value + rng.gauss(0, amplitude)


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([500.0] * 240, "flat"),
        ([500 + 3 * (minute % 17) for minute in range(240)], "flat"),
        # A single step, as when a cache is filled.
        ([500.0] * 20 + [540.0] * 220, "flat"),
        ([500 - 20 * hour for hour in HOURS], "flat"),
        ([500 + 10 * hour for hour in HOURS], "GROWS"),
        ([500 + 10 * hour + 3 * (minute % 17) for minute, hour in enumerate(HOURS)], "GROWS"),
        ([500.0] * 4, "too short"),
    ],
    ids=["constant", "sawtooth", "step", "shrinking", "leak", "leak in a sawtooth", "four values"],
)
def test_only_steady_growth_beyond_the_threshold_grows(values: Sequence[float], verdict: str) -> None:
    growth = judge("memory MiB", HOURS[: len(values)], list(map(noise(2.0), values)))
    assert growth.verdict == verdict, growth


def test_slope_is_the_median_of_all_pairs() -> None:
    # One outlier, which least squares would follow.
    values = [3.0 * hour for hour in HOURS]
    values[120] = 1e6
    growth = judge("memory MiB, driver", HOURS, values)
    assert growth.per_hour == pytest.approx(3.0)
    assert growth.surely_per_hour == pytest.approx(3.0)
    assert growth.verdict == "flat" and THRESHOLDS["memory MiB"] == 5.0


def test_only_undisturbed_samples_after_the_warm_up_count() -> None:
    taken = [Taken(hour, minute, True, {"threads": 90.0}) for minute, hour in enumerate(HOURS)]
    # While the run recovers from a fault, and while caches fill.
    taken += [Taken(hour, minute, False, {"threads": 90 + 50 * hour}) for minute, hour in enumerate(HOURS)]
    taken += [Taken(0.1, minute, True, {"threads": 1.0, "processes": 1.0}) for minute in range(6)]
    (growth,) = growths(taken, warm_up_minutes=24)
    assert (growth.name, growth.first, growth.last, growth.verdict) == ("threads", 90, 90, "flat")


def test_soak_without_enough_samples_is_a_problem() -> None:
    enough, few = judge("threads", HOURS, [90.0] * 240), judge("threads", HOURS[:4], [90.0] * 4)
    # Some kinds of processes live only for a short time.
    part = judge("threads, other Ray workers", HOURS[:4], [9.0] * 4)
    assert too_few([enough, part]) == ""
    assert too_few([few]) == "too few undisturbed samples to judge: threads"
    assert too_few([]) == "too few undisturbed samples to judge: everything"


def test_samples_count_what_an_orphaned_agent_of_ray_uses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (KEEP_MARK | {MARK: f"test-{os.getpid()}"}).items():
        monkeypatch.setenv(name, value)
    run, script = tmp_path / "run", tmp_path / "hold.py"
    (run / "checkpoint_1").mkdir(parents=True)
    (run / "checkpoint_1" / "state.pt").write_bytes(bytes(3 * MIB))
    script.write_text(HOLD)
    sampler = Sampler(run, tmp_path / "ray")
    before = sampler.sample(time.time())
    assert before["run folder MiB"] == pytest.approx(3.0, abs=0.1)
    assert (before["run folder files"], before["checkpoints"], before["object store MiB"]) == (1, 1, 0)
    assert "processes" not in before
    # The shell exits, so the script has no parent that the sampler knows.
    command = f"{sys.executable} {script} > {tmp_path / 'log'} 2>&1 & echo $!"
    pid = int(subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True).stdout)
    try:
        wait_until(lambda: (tmp_path / "log").read_text() == "ready\n")
        values = sampler.sample(time.time())
        assert values["processes"] == values["processes, dashboard and agents"] == 1
        assert 50 < values["memory MiB"] == values["memory MiB, dashboard and agents"] < 500
        assert 20 < values["open files"] < 60
        # Measured from the second sample of a process.
        assert "CPU cores" not in values
        assert 0 <= sampler.sample(time.time() + 1)["CPU cores"] < 1
    finally:
        os.kill(pid, 9)
