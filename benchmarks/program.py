"""Runs the project's program for a benchmark."""

import csv
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
LIMIT_SECONDS = 1800


@dataclass(frozen=True)
class Trained:
    """What a run measured.

    Attributes:
        rows: of metrics.csv, one for each epoch.
        peak_memory_bytes: the most that a worker of Ray's had in use, if it was watched; what several share counts in
            parts (PSS).
    """

    rows: list[dict[str, float]]
    peak_memory_bytes: int


def train(*flags: object, processes: int = 0, watch_memory: bool = False) -> Trained:
    """A finished run: under Ray, or of as many processes as are named under torchrun.

    To watch the memory takes time from the run.

    Raises:
        SystemExit: with what the run printed, if it fails.
    """
    torchrun = [Path(sys.executable).with_name("torchrun"), "--standalone", f"--nproc-per-node={processes}"]
    launcher = torchrun if processes else [sys.executable]
    with tempfile.TemporaryDirectory() as folder:
        command = [*launcher, ROOT / "ray_app" / "main.py", *flags, "--storage-path", folder, "--run-name", "run"]
        log = Path(folder, "log")
        with log.open("w") as output, subprocess.Popen(list(map(str, command)), stdout=output, stderr=output) as run:
            peak = _wait(run, watch_memory)
        if run.returncode:
            raise SystemExit(f"main.py failed: {log.read_text()[-2000:]}")
        with Path(folder, "run", "metrics.csv").open() as file:
            rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    return Trained(rows, peak)


def _wait(run: subprocess.Popen[bytes], watch_memory: bool) -> int:
    """Wait for the end of a run; gives the most memory that one of its workers had in use, in bytes, if watched."""
    deadline = time.monotonic() + LIMIT_SECONDS
    peak = 0
    while run.poll() is None and time.monotonic() < deadline:
        if watch_memory:
            peak = max(peak, _largest_worker(run.pid))
        time.sleep(2)
    run.kill()
    return peak


def _largest_worker(pid: int) -> int:
    """Memory in bytes of the worker below a process that uses most."""
    largest = 0
    for process in psutil.Process(pid).children(recursive=True):
        try:
            if process.name().startswith("ray::RayTrain"):
                largest = max(largest, process.memory_full_info().pss)
        except psutil.NoSuchProcess:
            continue
    return largest
