"""Run main.py for a benchmark, and collect its measurements."""

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

from vgg_ddp.run.files import read_metrics
from vgg_ddp.run.storage import Folder

ROOT = Path(__file__).resolve().parent.parent
MAIN = ROOT / "ray_app" / "main.py"
LIMIT_SECONDS = 4 * 3600
SECONDS_TO_END = 60


@dataclass(frozen=True)
class Trained:
    """The measurements of a finished run.

    Attributes:
        rows: the rows of metrics.csv, one per epoch.
        memory: samples of (time in seconds since 1970, bytes used by the largest Ray worker). Memory shared by several
            processes counts proportionally (PSS). Empty if memory was not watched.
    """

    rows: list[dict[str, float]]
    memory: list[tuple[float, int]]

    @property
    def peak_memory_bytes(self) -> int:
        return max((used for _, used in self.memory), default=0)

    def peaks_by_epoch(self) -> list[int]:
        """Peak memory in bytes of each epoch, from the end of the previous epoch to its own end."""
        ends = [row["time"] for row in self.rows]
        return [
            max((used for moment, used in self.memory if start < moment <= end), default=0)
            for start, end in zip([ends[0] - self.rows[0]["seconds"], *ends], ends, strict=False)
        ]


def end_on_signals() -> None:
    """Let Ctrl-C, SIGTERM and SIGHUP end this program with its cleanup, and with the shell's exit codes: 130, 143, 129.

    Under `nohup`, SIGHUP has no effect, as before, but the programs that this one starts do not inherit that; nor that
    SIGINT is ignored, as in the background of a shell.
    """
    survives_hangup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN

    def end(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, end)
    if survives_hangup:
        signal.signal(signal.SIGHUP, lambda *_: None)


def mean_and_spread(accuracies: Sequence[float]) -> str:
    """Mean and, with several values, standard deviation, as text."""
    spread = f" +- {statistics.stdev(accuracies):.2%}" if len(accuracies) > 1 else ""
    return f"{statistics.mean(accuracies):.2%}{spread}"


def torchrun_command(processes: int) -> list[object]:
    """The start of a command line that runs a script with this many processes on this machine."""
    return [Path(sys.executable).with_name("torchrun"), "--standalone", f"--nproc-per-node={processes}"]


def train(
    *flags: object,
    processes: int = 0,
    watch_memory: bool = False,
    show_epochs: bool = False,
    script: Sequence[object] = (MAIN,),
) -> Trained:
    """Run main.py to its end.

    Args:
        flags: flags of main.py.
        processes: start this many processes with torchrun; 0 starts main.py directly.
        watch_memory: sample the memory of Ray's workers, which slows the run slightly.
        show_epochs: print the line of each epoch as it appears.
        script: arguments of Python that replace main.py, such as ("-m", "some.module").

    Raises:
        SystemExit: if the run fails, with the end of its output.
    """
    launcher = torchrun_command(processes) if processes else [sys.executable]
    # Terminating the benchmark must end its run, as interrupting it does.
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
        return Trained(read_metrics(Folder.at(f"{folder}/run")), memory)


def _wait(run: subprocess.Popen[bytes], watch_memory: bool, written: TextIO | None) -> list[tuple[float, int]]:
    """Wait for a run to end; return the memory samples of its largest worker, if watched."""
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
    """Print the epoch lines that a run has written since the last call."""
    for line in written or ():
        if line.startswith("epoch "):
            print(f"  {line}", end="", flush=True)


def _largest_worker() -> int:
    """Memory in bytes of this machine's largest Ray Train worker."""
    largest = 0
    for process in psutil.process_iter(["name"]):
        try:
            if (process.info["name"] or "").startswith("ray::RayTrain"):
                largest = max(largest, process.memory_full_info().pss)
        except psutil.NoSuchProcess:
            continue
    return largest
