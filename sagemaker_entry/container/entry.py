"""What the head and the other hosts share: this container's log, signals, processes and Ray node."""

import os
import signal
import time

from sagemaker_entry import contract
from sagemaker_entry.container import hosts
from sagemaker_entry.container.hosts import Cluster
from sagemaker_entry.container.outcome import HOSTS_MISSING, RAY_STOPPED, STOPPED, JobError, Redactor, Verdict
from sagemaker_entry.container.processes import Child, Processes
from sagemaker_entry.container.secret_values import fetch_secrets

RAY_PORT = 6379
# How long hosts wait for each other. submit.py sets it with --join-seconds.
JOIN_SECONDS = float(os.environ.get(contract.JOIN_SECONDS, "600"))
# A host that has been silent for this long is considered lost.
LOST_SECONDS = 20.0
# SageMaker sends SIGKILL 120 s after SIGTERM. main.py takes at most 30 s of that; then the head delivers its verdict,
# and every host stops Ray.
STOP_SECONDS = 90.0
DELIVER_SECONDS = 15.0
POLL_SECONDS = 0.5
# Same as in vgg_ddp.compat.ray_variables: Ray reads this variable but does not document it. If Ray ignored it, others
# on the network could reach Ray's ports, and would still need the token.
LOOPBACK_ONLY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


class Entry:
    """This container.

    Attributes:
        environment: the environment of Ray and the driver.
        join_deadline: when the hosts stop waiting for each other, on the monotonic clock.
        stop_requested_at: when SIGTERM arrived, on the monotonic clock; infinity until then.
    """

    def __init__(self, cluster: Cluster, redact: Redactor, job_name: str) -> None:
        self.cluster = cluster
        self.job_name = job_name
        self.processes = Processes(redact)
        # Without SM_MODEL_DIR, which would tell main.py to copy its results, too.
        self.environment = {name: value for name, value in os.environ.items() if name != "SM_MODEL_DIR"}
        self.stop_requested_at = float("inf")
        self._redact = redact
        self._started_at = time.monotonic()
        self.join_deadline = self._started_at + JOIN_SECONDS
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.request_stop)
        # Count GPUs before the first heartbeat: nvidia-smi can be slow, and the others would take the silence for a
        # crash.
        self._gpus = 0 if cluster.is_coordinator(cluster.current) else hosts.count_gpus()

    def restart_join_deadline(self) -> None:
        """Start the time that hosts wait for each other again, after work that takes its own time."""
        self.join_deadline = time.monotonic() + JOIN_SECONDS

    def log(self, text: str) -> None:
        seconds = time.monotonic() - self._started_at
        print(self._redact(f"[{self.cluster.current.name} {seconds:6.1f} s] {text}"), flush=True)

    def request_stop(self, *_: object) -> None:
        """Record that the job must stop. Print nothing, since the signal may have interrupted a print."""
        self.stop_requested_at = min(self.stop_requested_at, time.monotonic())

    @property
    def stop_requested(self) -> bool:
        return self.stop_requested_at < float("inf")

    def seconds_since_stop(self) -> float:
        """Seconds since SIGTERM; minus infinity until then."""
        return time.monotonic() - self.stop_requested_at

    def prepare_environment(self, token: str) -> None:
        """Set the variables that pip, Ray and its workers inherit.

        Raises:
            JobError: if a secret that the job names cannot be read.
        """
        self._redact.add(token)
        secrets = fetch_secrets(self.environment)
        for secret in secrets.values():
            for line in secret.splitlines():
                self._redact.add(line)
        self.environment |= secrets
        self.environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
        if len(self.cluster.hosts) == 1:
            self.environment |= LOOPBACK_ONLY
        self.environment |= hosts.network_environment(self.cluster, self.environment, hosts.has_efa_device())

    def resolve(self, name: str) -> str:
        """Address of a host. Waits until its name resolves, since hosts start at different times.

        Raises:
            JobError: if the name does not resolve before the join deadline, or SIGTERM arrives first.
        """
        while True:
            try:
                return hosts.address_of(name)
            except OSError as error:
                if self.stop_requested:
                    raise JobError(STOPPED, "stopped by SIGTERM before the job started") from error
                if time.monotonic() > self.join_deadline:
                    reason = f"after {JOIN_SECONDS:.0f} s, the name {name} still does not resolve ({error})"
                    raise JobError(HOSTS_MISSING, reason) from error
            time.sleep(POLL_SECONDS)

    def start_ray(self, node_address: str, *flags: str) -> Child:
        """Start this host's Ray node. `ray start --block` exits as soon as one of Ray's processes does."""
        coordinator = self.cluster.is_coordinator(self.cluster.current)
        store = hosts.object_store_flags(hosts.free_shm_bytes(), hosts.memory_bytes())
        command = ["ray", "start", "--block", "--disable-usage-stats", f"--node-ip-address={node_address}", *flags]
        command += [f"--num-gpus={self._gpus}", *store, *(["--num-cpus=0"] if coordinator else [])]
        self.log(f"starting Ray on {node_address} with {self._gpus} GPUs and {' '.join(store)}")
        return self.processes.start(command, self.environment, quiet=True)


def stopped_ray(name: str, ray: Child) -> Verdict:
    """The failure of a host whose Ray node exited, with the last lines that Ray printed."""
    lines = "\n".join(ray.last_lines()[-8:])
    return Verdict(RAY_STOPPED, f"Ray stopped on {name} with exit code {ray.code}\n{lines}")
