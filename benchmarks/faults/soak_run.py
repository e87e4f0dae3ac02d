"""The run of a soak on a Ray cluster of its own, and the faults that hit it."""

import os
import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.faults.local_rounds import corrupt
from benchmarks.faults.soak_samples import own_processes
from benchmarks.faults.training import DRAIN_SECONDS, Training, drain, newest_step
from benchmarks.small_data import write_small_data
from vgg_ddp.run.files import read_metrics, read_startup
from vgg_ddp.run.storage import Folder

KINDS = ("worker kill", "worker freeze", "corruption", "driver kill", "terminate", "node drain")
# Of ten images of CIFAR-10, the bundled sample has one.
EVERY = 6
NAME = "soak"
ENDLESS = 1_000_000
COLLECTIVE_TIMEOUT_SECONDS = 20
LIMIT_SECONDS = 300
SECONDS_TO_CLEAN_UP = 60
STORE_BYTES = 200 * 2**20


@dataclass(frozen=True)
class Fault:
    """A fault.

    Attributes:
        minute: when it was, since the start of the soak.
        step: step of the newest checkpoint at that time.
        seconds: time from the fault to the first new step; of a drained node, including the time until it is removed.
            None if the fault could not be caused.
        problem: what did not go as expected; empty if everything did.
    """

    minute: float
    kind: str
    step: int
    seconds: float | None
    problem: str


class SoakedRun:
    """A run with two workers on a cluster of three nodes; ends both as a context manager."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.folder = place / "runs" / NAME
        self.ray_folder = place / "ray"
        self._data = write_small_data(place / "data", lambda _, count: range(0, count, EVERY))

    def __enter__(self) -> "SoakedRun":
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "include_dashboard": True, "object_store_memory": STORE_BYTES}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self._nodes = [self._add_node() for _ in range(2)]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._cluster.shutdown()
        finally:
            for process, _ in own_processes():
                process.kill()

    def _add_node(self) -> Any:
        return self._cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)

    def start(self, epochs: int = ENDLESS) -> None:
        """Start the command, which begins or resumes the run."""
        flags = ["--run-name", NAME, "--data", self._data, "--num-workers", 2, "--device", "cpu", "--epochs", epochs]
        flags += ["--recipe", "classic", "--precision", "fp32", "--checkpoint-every-seconds", 5]
        flags += ["--max-failures", ENDLESS, "--collective-timeout-seconds", COLLECTIVE_TIMEOUT_SECONDS]
        self._training = Training(self.place, *flags, "--address", self._cluster.address)

    def wait_for_step(self, moment: float) -> str:
        """Wait for a first step after this moment, in seconds since 1970; describe a failure, empty if there was none.

        If the command has ended, it is started again.
        """
        deadline = time.monotonic() + LIMIT_SECONDS
        while read_startup(Folder.at(str(self.folder))).get("first step", 0.0) <= moment:
            code = self._training.process.poll()
            if code is not None:
                end = self._training.log.read_text()[-500:]
                self.start()
                return f"the command ended with {code}: {end}"
            if time.monotonic() > deadline:
                return f"no step within {LIMIT_SECONDS} s"
            time.sleep(0.1)
        return ""

    def hit(self, kind: str, minute: float, rng: random.Random) -> Fault:
        """Cause a fault, and wait for the first new step."""
        step, moment = newest_step(self.folder), time.time()
        try:
            problem = self._cause(kind, rng)
        except Exception as error:
            # Hours of samples are worth more than this fault, which counts as a problem.
            return Fault(minute, kind, step, None, f"cannot be caused: {error!r}")
        problem += self.wait_for_step(moment)
        return Fault(minute, kind, step, time.time() - moment, problem)

    def _cause(self, kind: str, rng: random.Random) -> str:
        """Cause a fault; describe what did not go as expected, empty if everything did."""
        if kind in ("driver kill", "terminate"):
            problem = self._end_command(signal.SIGTERM if kind == "terminate" else signal.SIGKILL)
            self.start()
            return problem
        if kind == "node drain":
            self._drain_node(rng.randrange(len(self._nodes)))
            return ""
        if kind == "corruption":
            corrupt(self.folder, rng)
        workers = [process.pid for process, name in own_processes() if name == "workers"]
        if not workers:
            raise ValueError("no worker runs")
        os.kill(rng.choice(workers), signal.SIGSTOP if kind == "worker freeze" else signal.SIGKILL)
        return ""

    def _end_command(self, number: int) -> str:
        self._training.process.send_signal(number)
        expected = 143 if number == signal.SIGTERM else -number
        code = self._training.wait(60)
        return "" if code == expected else f"exit code {code} instead of {expected}"

    def _drain_node(self, number: int) -> None:
        """Drain a node; remove it at the deadline, while another one joins."""
        leaving = self._nodes[number]
        drain(self._cluster.address, leaving.node_id, "soak")
        self._nodes[number] = self._add_node()
        time.sleep(DRAIN_SECONDS)
        self._cluster.remove_node(leaving, allow_graceful=False)

    def finish(self) -> str:
        """Stop the command, and resume the run for two more epochs; describe a failure, empty if there was none."""
        problem = self._end_command(signal.SIGTERM)
        epochs = int(read_metrics(Folder.at(str(self.folder)))[-1]["epoch"]) + 2
        self.start(epochs)
        if code := self._training.wait(LIMIT_SECONDS):
            return f"{problem} the last command ended with {code}: {self._training.log.read_text()[-1000:]}"
        rows = [int(row["epoch"]) for row in read_metrics(Folder.at(str(self.folder)))]
        if rows != list(range(1, epochs + 1)) or not (self.folder / "model.safetensors").exists():
            problem += f" {len(rows)} epochs recorded instead of {epochs}, or no model"
        deadline = time.monotonic() + SECONDS_TO_CLEAN_UP
        while left := {kind for _, kind in own_processes()} & {"driver", "controller", "workers"}:
            if time.monotonic() > deadline:
                return f"{problem} processes remain: {', '.join(sorted(left))}"
            time.sleep(1)
        return problem
