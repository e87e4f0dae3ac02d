"""The hosts of a SageMaker job, simulated: the program's own code decides how the job ends, and tells all hosts.

What it starts (pip, Ray, main.py, the program that copies the results) only takes its time, and fails if it has to. The
network can lose requests and answers, and hosts can be killed, frozen, and stopped.
"""

import json
import socketserver
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sagemaker_entry.container import entry, head, hosts, packages, peer, run, verdicts
from sagemaker_entry.container.entry import Entry
from sagemaker_entry.container.hosts import Cluster, Host
from sagemaker_entry.container.job import Paths
from sagemaker_entry.container.outcome import FINISHED, HOSTS_MISSING, STOPPED, Redactor, Verdict
from sagemaker_entry.contract import SECRET_FILE
from support.simulated_network import Connection, Server
from support.simulation import Process, World

PIP_SECONDS, TRAINING_SECONDS, COPYING_SECONDS, STOPPING_SECONDS, NOTICING_SECONDS = 3.0, 6.0, 1.0, 2.0, 5.0
MESSAGE_SECONDS = 0.01


class Child:
    """A program that a host has started.

    Attributes:
        kind: pip, ray, driver, or outputs.
        code: the exit code; None until it has ended and was reaped.
    """

    def __init__(self, kind: str, ends_at: float) -> None:
        self.kind, self.ends_at = kind, ends_at
        self.code: int | None = None
        self.signals: list[int] = []

    def last_lines(self) -> list[str]:
        return [f"error: {self.kind} failed"]

    def send_signal(self, number: int) -> None:
        self.signals.append(number)


class SimulatedHost(Entry):
    """One host: `Entry` without signal handlers, and with simulated programs.

    Attributes:
        verdict: what the host has decided; None until it ends.
    """

    def __init__(self, job: "SimulatedJob", cluster: Cluster) -> None:
        self.job, self.cluster, self.job_name, self.name = job, cluster, "job", cluster.current.name
        self.processes = self  # type: ignore[assignment]
        self.environment = {}
        self.stop_requested_at = float("inf")
        self._redact, self._started_at, self._gpus = Redactor({}), job.world.now, 0
        self.restart_join_deadline()
        self.children: list[Child] = []
        self.verdict: Verdict | None = None
        self.process = job.world.start(self.name, 0, self._run)

    def _run(self) -> None:
        self.verdict = run._judge(self, self.job.paths)
        for child in self.children:
            child.code = -15 if child.code is None else child.code

    def log(self, text: str) -> None:
        pass

    def start(self, command: Sequence[str], _environment: Any, **_: Any) -> Child:
        names = {
            "ray": "ray",
            "sagemaker_entry.container.driver": "driver",
            "sagemaker_entry.container.outputs": "outputs",
        }
        kind = names.get(command[0]) or names.get(command[2], "pip")
        seconds = {"pip": PIP_SECONDS, "outputs": COPYING_SECONDS}.get(kind, float("inf"))
        self.children.append(Child(kind, self.job.world.now + seconds))
        return self.children[-1]

    def reap(self) -> None:
        for child in self.children:
            if child.code is None:
                child.code = self.job.exit_code(self, child)

    def has_ray(self) -> bool:
        """Whether this host's Ray node runs and was not stopped."""
        ray = [child for child in self.children if child.kind == "ray" and child.code is None]
        return bool(ray) and self.process.state == "running"


class SimulatedJob:
    """A job of several hosts.

    Attributes:
        fails: the programs that fail, by the name of the host and the kind of the program.
        cut: the names of the hosts whose network is cut.
        loses_answers: how many of the next answers to requests are lost.
        was_disturbed: whether a message was lost or late, so that hosts may disagree about a failure.
    """

    def __init__(self, world: World, paths: Paths, count: int) -> None:
        self.world, self.paths = world, paths
        self.fails: set[tuple[str, str]] = set()
        self.cut: set[str] = set()
        self.loses_answers = 0
        self.was_disturbed = False
        self.servers: dict[str, Server] = {}
        self._well_at: dict[str, float] = {}
        every = tuple(Host(f"algo-{number + 1}", "", "ml.m5.large") for number in range(count))
        self.hosts = [SimulatedHost(self, Cluster(every, host, "eth0")) for host in every]

    def kill(self, number: int) -> None:
        # Only the head knows the verdict of a job; the others may have it, or not.
        self.was_disturbed |= number == 0
        self.hosts[number].process.state = "dead"

    def freeze(self, number: int) -> None:
        if self.hosts[number].process.state == "running":
            self.was_disturbed = True
            self.hosts[number].process.state = "frozen"

    def wake(self) -> None:
        for host in self.hosts:
            host.process.state = "running" if host.process.state == "frozen" else host.process.state

    def cut_off(self, number: int) -> None:
        self.was_disturbed = True
        self.cut.add(self.hosts[number].name)

    def has_ended(self) -> bool:
        return all(host.process.state == "dead" for host in self.hosts)

    def has_succeeded(self) -> bool:
        """Whether SageMaker counts the job as completed: all containers have exited with code 0."""
        return all(host.verdict is not None and host.verdict.code == FINISHED for host in self.hosts)

    def violations(self) -> list[str]:
        """What is not as it must be after the end: success means that there are results, and the hosts agree."""
        found = [f"{host.name}: {host.process.failure!r}" for host in self.hosts if host.process.failure]
        found += [f"{host.name} does not end" for host in self.hosts if host.process.state != "dead"]
        verdicts = {host.name: host.verdict for host in self.hosts if host.verdict}
        codes = {child.kind: child.code for child in self.hosts[0].children}
        has_results = codes.get("driver") == 0 == codes.get("outputs")
        if not has_results and any(verdict.code == FINISHED for verdict in verdicts.values()):
            found.append(f"a false success: {verdicts}, {codes}")
        if len(set(verdicts.values())) > 1 and not self.was_disturbed:
            found.append(f"the hosts disagree: {verdicts}")
        return found

    def host_of(self, process: Process) -> SimulatedHost:
        return next(host for host in self.hosts if host.process is process)

    def exit_code(self, host: SimulatedHost, child: Child) -> int | None:
        """The exit code of a program; None if it still runs."""
        if child.kind == "driver":
            return self._driver_code(host, child)
        if (host.name, child.kind) in self.fails:
            return 1
        if child.kind == "ray":
            # A node ends a while after its head.
            return 1 if self._ill_seconds("head", self.hosts[:1]) > NOTICING_SECONDS else None
        return 0 if self.world.now >= child.ends_at else None

    def _driver_code(self, host: SimulatedHost, child: Child) -> int | None:
        if child.signals:
            child.ends_at = min(child.ends_at, self.world.now + STOPPING_SECONDS)
            return STOPPED if self.world.now >= child.ends_at else None
        ill_seconds = self._ill_seconds("all", self.hosts)
        if child.ends_at == float("inf"):
            if not ill_seconds:
                child.ends_at = self.world.now + TRAINING_SECONDS
            return HOSTS_MISSING if self.world.now > host.join_deadline else None
        if ill_seconds > NOTICING_SECONDS:
            return 1
        return None if self.world.now < child.ends_at else int((host.name, "driver") in self.fails)

    def _ill_seconds(self, group: str, hosts: Sequence[SimulatedHost]) -> float:
        """For how long not all of these hosts have had a Ray node."""
        if all(host.has_ray() for host in hosts):
            self._well_at[group] = self.world.now
        return self.world.now - self._well_at.setdefault(group, float("-inf"))

    def address_of(self, name: str) -> str:
        """Takes the place of `hosts.address_of`."""
        return name

    def connect(self, address: tuple[str, int], _timeout: float) -> Connection:
        """Takes the place of socket.create_connection."""
        return Connection(lambda request: self.exchange(address[0], request))

    def serve(self, address: tuple[str, int], handler: Any) -> Server:
        """Takes the place of socketserver.ThreadingTCPServer."""
        return Server(self.servers, address, handler)

    def exchange(self, name: str, request: bytes) -> bytes:
        """The answer of the server on this host.

        Raises:
            OSError: if there is none.
        """
        asking = self.host_of(self.world.process)
        self.world.pause(MESSAGE_SECONDS)
        head = next(host for host in self.hosts if host.name == name)
        if {name, asking.name} & self.cut or head.process.state == "frozen":
            self.world.pause(verdicts.ANSWER_SECONDS)
            raise TimeoutError("timed out")
        if name not in self.servers or head.process.state == "dead":
            raise ConnectionRefusedError("connection refused")
        answer = self.servers[name].answer(request)
        self.world.pause(MESSAGE_SECONDS)
        if self.loses_answers:
            self.loses_answers -= 1
            raise TimeoutError("the answer was lost")
        return answer


@contextmanager
def simulated_job(folder: Path, count: int = 3) -> Iterator[SimulatedJob]:
    """A job that starts now. Within this context, the clock and the network of the hosts are simulated."""
    paths = Paths(folder)
    paths.config.mkdir(parents=True, exist_ok=True)
    (paths.config / "hyperparameters.json").write_text(json.dumps({"storage-path": "s3://bucket/runs"}))
    (paths.config / "inputdataconfig.json").write_text("{}")
    secret = folder / "sagemaker_entry" / SECRET_FILE
    secret.parent.mkdir(exist_ok=True)
    secret.write_bytes(b"secret")
    world = World()
    with pytest.MonkeyPatch.context() as patch:
        for module in (entry, head, packages, peer, verdicts):
            patch.setattr(module, "time", world.time_module())
        for module in (entry, peer):
            patch.setattr(module, "JOIN_SECONDS", 60.0)
        patch.setattr(run, "ROOT", folder)
        job = SimulatedJob(world, paths, count)
        patch.setattr(verdicts, "threading", world.threading_module())
        patch.setattr(verdicts, "socket", SimpleNamespace(create_connection=job.connect))
        handler = socketserver.StreamRequestHandler
        patch.setattr(
            verdicts, "socketserver", SimpleNamespace(ThreadingTCPServer=job.serve, StreamRequestHandler=handler)
        )
        patch.setattr(hosts, "address_of", job.address_of)
        try:
            yield job
        finally:
            world.close()
