"""Runs the project's program for a benchmark."""

import csv
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import psutil

ROOT = Path(__file__).resolve().parent.parent
MAIN = ROOT / "ray_app" / "main.py"
LIMIT_SECONDS = 4 * 3600
SECONDS_TO_END = 60


@dataclass(frozen=True)
class Trained:
    """What a run measured.

    Attributes:
        rows: of metrics.csv, one for each epoch.
        memory: when it was looked at, in seconds since 1970, and how many bytes the worker of Ray's that used most had
            in use; what several share counts in parts (PSS). Nothing if it was not watched.
    """

    rows: list[dict[str, float]]
    memory: list[tuple[float, int]]

    @property
    def peak_memory_bytes(self) -> int:
        return max((used for _, used in self.memory), default=0)

    def peaks_by_epoch(self) -> list[int]:
        """The most memory in use in each epoch, from the end of the one before to its own."""
        ends = [row["time"] for row in self.rows]
        return [
            max((used for moment, used in self.memory if start < moment <= end), default=0)
            for start, end in zip([ends[0] - self.rows[0]["seconds"], *ends], ends, strict=False)
        ]


def mean_and_spread(accuracies: Sequence[float]) -> str:
    """Mean of some runs, and their standard deviation where there are several, as text."""
    spread = f" +- {statistics.stdev(accuracies):.2%}" if len(accuracies) > 1 else ""
    return f"{statistics.mean(accuracies):.2%}{spread}"


def train(
    *flags: object,
    processes: int = 0,
    watch_memory: bool = False,
    show_epochs: bool = False,
    script: Sequence[object] = (MAIN,),
) -> Trained:
    """A finished run: under Ray, or of as many processes as are named under torchrun.

    To watch the memory takes time from the run. The lines on its epochs are printed as they come if they are to be
    shown. Another script, with its first arguments, may stand for main.py.

    Raises:
        SystemExit: with what the run printed, if it fails.
    """
    torchrun = [Path(sys.executable).with_name("torchrun"), "--standalone", f"--nproc-per-node={processes}"]
    launcher = torchrun if processes else [sys.executable]
    # A terminated benchmark is to end its run like an interrupted one.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory() as folder:
        command = [*launcher, *script, *flags, "--storage-path", folder, "--run-name", "run"]
        log = Path(folder, "log")
        with (
            log.open("w") as output,
            log.open() as written,
            subprocess.Popen(list(map(str, command)), stdout=output, stderr=output) as run,
        ):
            memory = _wait(run, watch_memory, written if show_epochs else None)
        if run.returncode:
            raise SystemExit(f"main.py failed: {log.read_text()[-2000:]}")
        with Path(folder, "run", "metrics.csv").open() as file:
            rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    return Trained(rows, memory)


def _wait(run: subprocess.Popen[bytes], watch_memory: bool, written: TextIO | None) -> list[tuple[float, int]]:
    """Wait for the end of a run; what its largest worker had in use meanwhile, if it is to be watched."""
    deadline = time.monotonic() + LIMIT_SECONDS
    memory = []
    try:
        while run.poll() is None and time.monotonic() < deadline:
            if watch_memory:
                memory.append((time.time(), _largest_worker()))
            time.sleep(2)
            _print_epochs(written)
    finally:
        run.terminate()
        try:
            run.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            run.kill()
    _print_epochs(written)
    return memory


def _print_epochs(written: TextIO | None) -> None:
    """Print the lines on epochs that a run has written since the last look."""
    for line in written or ():
        if line.startswith("epoch "):
            print(f"  {line}", end="", flush=True)


def _largest_worker() -> int:
    """Memory in bytes of the worker on this machine that uses most."""
    largest = 0
    for process in psutil.process_iter(["name"]):
        try:
            if (process.info["name"] or "").startswith("ray::RayTrain"):
                largest = max(largest, process.memory_full_info().pss)
        except psutil.NoSuchProcess:
            continue
    return largest
