"""Measure a program from outside: the memory of all its processes, and its optimizer steps."""

import os
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

SECONDS_TO_END = 60
SECONDS_BETWEEN_SAMPLES = 0.5


@dataclass
class Watched:
    """A program that has ended.

    Attributes:
        started: when it was started, in seconds since 1970.
        memory: bytes of each of its processes, by name, when their sum was highest. Memory that several processes share
            counts proportionally (PSS).
    """

    started: float
    memory: dict[str, int] = field(default_factory=dict)

    @property
    def peak_memory_bytes(self) -> int:
        return sum(self.memory.values())


def watch(
    command: Sequence[object], environment: Mapping[str, str], folder: Path, limit_seconds: float = 3600
) -> Watched:
    """Run a command in a folder, and sample the memory of its processes.

    Raises:
        SystemExit: if the command fails or takes longer than `limit_seconds`, with the end of its output.
    """
    log, watched = folder / "log", Watched(time.time())
    with log.open("w") as output:
        program = subprocess.Popen(
            list(map(str, command)),
            stdout=output,
            stderr=output,
            cwd=folder,
            env=dict(environment),
            start_new_session=True,
        )
        try:
            while program.poll() is None and time.time() < watched.started + limit_seconds:
                sample = memory_by_process(program.pid)
                if sum(sample.values()) > watched.peak_memory_bytes:
                    watched.memory = sample
                time.sleep(SECONDS_BETWEEN_SAMPLES)
            ended = program.poll() is not None
        finally:
            _end(program)
    if program.returncode or not ended:
        problem = "failed" if ended else f"did not end in {limit_seconds:g} s"
        sys.exit(f"{' '.join(map(str, command))} {problem}: {log.read_text()[-2000:]}")
    return watched


def _end(program: subprocess.Popen[bytes]) -> None:
    """End a program that leads a process group, and what is left of the group after `SECONDS_TO_END`."""
    program.terminate()
    try:
        program.wait(SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        os.killpg(program.pid, signal.SIGKILL)
        program.wait()


def memory_by_process(pid: int) -> dict[str, int]:
    """PSS in bytes of a process and its descendants, by name, largest first."""
    memory: Counter[str] = Counter()
    try:
        processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return memory
    for process in processes:
        try:
            memory[_name(process)] += process.memory_full_info().pss
        except psutil.NoSuchProcess:
            continue
    return dict(memory.most_common())


def _name(process: psutil.Process) -> str:
    """A name that tells the processes of a program apart: its module or script, or what Ray calls it."""
    words = process.cmdline() or [process.name()]
    if "-m" in words[:-1]:
        return words[words.index("-m") + 1]
    return Path(next((word for word in words if word.endswith(".py")), words[0])).name


def read_steps(folder: Path) -> list[list[float]]:
    """The times of the optimizer steps of each process, from the files of its stopwatch."""
    return [[float(line) for line in file.read_text().split()] for file in sorted(folder.glob("steps-*"))]


def first_step(steps: Sequence[Sequence[float]]) -> float:
    """When the slowest process had taken its first step."""
    return max(times[0] for times in steps)


def images_per_second(steps: Sequence[Sequence[float]], epochs: int, num_images: int, global_batch: int) -> float:
    """Training speed in the last epoch, from the end of its first step to the end of its last."""
    per_epoch = len(steps[0]) // epochs
    seconds = statistics.mean(times[-1] - times[-per_epoch] for times in steps)
    return (num_images - global_batch) / seconds


def lines_of_code(source: str) -> int:
    """Lines that are neither blank, comments, docstrings, nor part of the measurement."""
    import ast

    tree = ast.parse(source)
    docstrings: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            docstrings |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines = enumerate(source.splitlines(), start=1)
    return sum(
        bool(line.strip())
        and not line.strip().startswith("#")
        and number not in docstrings
        and "stopwatch(" not in line
        for number, line in lines
    )
