"""Run a training command in the background, and follow its progress in the run folder."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

from benchmarks.program import MAIN

MARK = "VGG_CHAOS_MARK"
LIMIT_SECONDS = 600
DRAIN_SECONDS = 10


class Training:
    """main.py in the background, of this checkout by default. All its processes carry a mark in their environment."""

    def __init__(self, folder: Path, *flags: object, main: Path = MAIN) -> None:
        self.mark = uuid.uuid4().hex
        self.log = folder / f"{self.mark}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(main), *map(str, flags)],
                cwd=folder,
                env=os.environ | {MARK: self.mark},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def processes(self) -> dict[int, str]:
        """Process IDs and command lines of all running processes of this command, including itself."""
        found = {}
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and f"{MARK}={self.mark}\0".encode() in (entry / "environ").read_bytes():
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                # It has exited.
                continue
        return {pid: command for pid, command in found.items() if command}

    def workers(self) -> list[int]:
        """Process IDs of the Ray Train workers."""
        return [pid for pid, command in self.processes().items() if command.startswith("ray::RayTrainWorker")]

    def wait(self, limit_seconds: float = LIMIT_SECONDS) -> int:
        """Exit code of the command; -1 if it was killed at the time limit."""
        try:
            return self.process.wait(limit_seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return -1

    def wait_until_all_gone(self, limit_seconds: float) -> bool:
        """Whether all processes end within the time limit; the remaining ones are killed."""
        deadline = time.monotonic() + limit_seconds
        while self.processes() and time.monotonic() < deadline:
            time.sleep(0.1)
        remaining = self.processes()
        for pid in remaining:
            os.kill(pid, signal.SIGKILL)
        return not remaining


def drain(address: str, node_id: str, message: str) -> None:
    """Announce to a Ray cluster that a node will be preempted in DRAIN_SECONDS, as a spot instance is.

    Raises:
        subprocess.CalledProcessError: if Ray refuses.
    """
    ray = Path(sys.executable).with_name("ray")
    target = ["--address", address, "--node-id", node_id, "--reason-message", message]
    reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--deadline-remaining-seconds", str(DRAIN_SECONDS)]
    subprocess.run([ray, "drain-node", *target, *reason], check=True, capture_output=True)


def step_of(manifest: Path) -> int:
    """Step of the checkpoint that a manifest belongs to."""
    return int(manifest.parent.name.split("_")[1])


def newest_step(run: Path) -> int:
    """Step of the newest complete checkpoint, 0 if there is none."""
    return max(map(step_of, run.glob("checkpoint_*/manifest.json")), default=0)


def wait_for_step(training: Training, run: Path, step: int) -> None:
    """Wait for a checkpoint of at least this step, for the command to end, or for the time limit."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while newest_step(run) < step and training.process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)


def first_step_after(training: Training, run: Path, moment: float) -> float:
    """The time at which workers started after `moment` finished their first step, in seconds since 1970.

    NaN if the command ends before that, or does not take a step within the time limit.
    """
    startup = run / "startup.json"
    deadline = time.monotonic() + LIMIT_SECONDS
    while True:
        # Checked before reading the file: the run may write the file and end in between.
        ended = training.process.poll() is not None
        if startup.exists():
            first_step: float = json.loads(startup.read_text())["first step"]
            if first_step > moment:
                return first_step
        if ended or time.monotonic() > deadline:
            return float("nan")
        time.sleep(0.05)


def estimate_step(run: Path, moment: float) -> int:
    """The step a run had reached, from its newest checkpoint and the speed between the last two."""
    manifests = sorted(run.glob("checkpoint_*/manifest.json"))[-2:]
    if len(manifests) < 2:
        return newest_step(run)
    (first, last), (before, after) = ([path.stat().st_mtime for path in manifests], map(step_of, manifests))
    return after + max(0, round((moment - last) * (after - before) / (last - first)))
