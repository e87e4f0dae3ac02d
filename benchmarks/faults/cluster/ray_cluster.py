"""A Ray cluster on hosts: start it, repair it, and start a training command on its head."""

import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.faults.cluster.hosts import Host, Network, send_signal, wait_until
from benchmarks.program import MAIN

PORT = 6379
SECONDS_TO_START, SECONDS_TO_JOIN = 90, 90
ATTEMPTS = 3
OBJECT_STORE_BYTES = 200 * 2**20
RAY = Path(sys.executable).with_name("ray")
# Ray finds dead nodes within 12 s, and its processes give up a dead head after 10 s, instead of a minute each.
QUICK = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "10",
}
SETTINGS = QUICK | {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_memory_monitor_refresh_ms": "0",
    "OMP_WAIT_POLICY": "passive",
    # Without this, processes overwrite their environment by their title, and with it the job that they belong to.
    "SPT_NOENV": "1",
}
# What may remain on a host between runs: the processes of Ray itself.
DAEMONS = (
    *("gcs_server", "/raylet ", "/ray/_private/", "/ray/dashboard/", "/ray/autoscaler/", "ray.util.client.server"),
    *("ray::DashboardAgent", "ray::RuntimeEnvAgent"),
    # Actors of the cluster, which one run starts for all that follow.
    *("ray::_AutoscalingCoordinatorActor", "ray::TrainStateActor"),
)
NO_JOB = b"RAY_JOB_ID=ffffffff"
COUNT_NODES = """
import sys, time, ray
ray.init(address=sys.argv[1], logging_level=40, log_to_driver=False)
while sum(node["Alive"] for node in ray.nodes()) != int(sys.argv[2]):
    time.sleep(0.3)
"""


@dataclass
class RayCluster:
    """Ray's head on the first host, and a node with one CPU on each other one.

    Attributes:
        head_cpus: CPUs of the head; with 0, all workers of a run are on other hosts.
        environment: for all processes, such as credentials.
        extra: environment of Ray's processes on single hosts, by the host's name.
    """

    network: Network
    head_cpus: int
    environment: dict[str, str] = field(default_factory=dict)
    extra: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def hosts(self) -> list[Host]:
        return self.network.hosts

    @property
    def head(self) -> Host:
        return self.hosts[0]

    @property
    def address(self) -> str:
        return f"{self.head.ip}:{PORT}"

    def settings(self, host: Host) -> dict[str, str]:
        """The environment of Ray's processes on a host."""
        own = {"HOME": str(host.folder), "RAY_TMPDIR": str(self.network.base / "ray")}
        return SETTINGS | own | self.environment | self.extra.get(host.name, {})

    def start(self) -> None:
        """End whatever runs on the hosts, and start Ray on all of them.

        Retries, because `ray start` gives up after 30 s, which is not always enough on a busy machine.

        Raises:
            RuntimeError: if the last attempt fails.
        """
        for attempt in range(1, ATTEMPTS + 1):
            try:
                for host in self.hosts:
                    host.kill_everything()
                for host in self.hosts:
                    self.start_node(host)
                self.wait_for_nodes()
                return
            except RuntimeError:
                if attempt == ATTEMPTS:
                    raise

    def start_node(self, host: Host) -> None:
        """Start Ray on a host, and wait until the command has ended."""
        common = ["--node-ip-address", host.ip, "--object-store-memory", OBJECT_STORE_BYTES, "--disable-usage-stats"]
        role = ["--address", self.address, "--num-cpus", 1]
        if host is self.head:
            role = ["--head", "--port", PORT, "--num-cpus", self.head_cpus, "--include-dashboard", "false"]
        command = host.enter(RAY, "start", *role, *common, environment=self.settings(host))
        with (host.folder / "ray-start.log").open("ab") as log:
            try:
                done = subprocess.run(command, stdout=log, stderr=log, timeout=SECONDS_TO_START)
            except subprocess.TimeoutExpired:
                raise RuntimeError(f"ray start does not end on {host.name}") from None
        if done.returncode:
            raise RuntimeError(f"ray start failed on {host.name}: {(host.folder / 'ray-start.log').read_text()[-900:]}")

    def wait_for_nodes(self) -> None:
        """Wait until all nodes are alive, and dead ones are known to be dead."""
        command = self.head.enter(
            sys.executable, "-c", COUNT_NODES, self.address, len(self.hosts), environment=self.settings(self.head)
        )
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=SECONDS_TO_JOIN)
        except subprocess.SubprocessError as error:
            raise RuntimeError(f"the cluster does not have {len(self.hosts)} nodes: {error}") from error

    def is_running(self, host: Host, part: str = "/raylet ") -> bool:
        return any(part in command for command in host.processes().values())

    def has_head(self) -> bool:
        return self.is_running(self.head, "gcs_server") and self.is_running(self.head)

    def replace_dead_nodes(self) -> None:
        """Start Ray again where it has died, as if a machine had been replaced; not on the head."""
        for host in self.hosts[1:]:
            if not self.is_running(host):
                host.kill_everything()
                self.start_node(host)

    def restore(self) -> None:
        """Bring the cluster back to all of its nodes; from scratch, if its head is dead."""
        if not self.has_head():
            self.start()
            return
        try:
            self.replace_dead_nodes()
            self.wait_for_nodes()
        except RuntimeError:
            self.start()

    def leftovers(self) -> list[str]:
        """Processes on all hosts that do not belong to Ray itself; none after a run."""
        return [
            f"{host.name}: {command[:80]}"
            for host in self.hosts
            for pid, command in host.processes().items()
            if not any(part in command for part in DAEMONS) and not is_idle_without_job(pid, command)
        ]

    def wait_until_clean(self, limit_seconds: float, may_idle: bool = False) -> list[str]:
        """The processes that remain after the time limit.

        `may_idle` ignores Ray's idle processes: Ray ends them by the time of day, so late after a clock is set back.
        """

        def remaining() -> list[str]:
            return [process for process in self.leftovers() if not (may_idle and "ray::IDLE" in process)]

        wait_until(lambda: not remaining(), limit_seconds, interval_seconds=0.5)
        return remaining()


def is_idle_without_job(pid: int, command: str) -> bool:
    """Whether a process waits for any job. Those of a run, such as its spare processes, have to end with it."""
    if "ray::IDLE" not in command:
        return False
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        # It has exited.
        return True
    jobs = [setting for setting in environment if setting.startswith(b"RAY_JOB_ID=")]
    return all(job == NO_JOB for job in jobs)


class HostTraining:
    """main.py in the background, on the head of a cluster."""

    def __init__(self, cluster: RayCluster, log: Path, *flags: object) -> None:
        self.cluster = cluster
        self.log = log
        # The first line that this command writes.
        self.start_of_log = log.stat().st_size if log.exists() else 0
        environment = cluster.settings(cluster.head)
        command = cluster.head.enter(sys.executable, "-u", MAIN, *flags, environment=environment)
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def output(self) -> str:
        """What this command has printed so far."""
        return self.log.read_bytes()[self.start_of_log :].decode(errors="replace")

    def end(self) -> None:
        """Kill the command, if it runs."""
        for pid, command in self.cluster.head.processes().items():
            if str(MAIN) in command:
                send_signal(pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()
