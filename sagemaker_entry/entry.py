"""What the head and the other hosts have in common: this container's log, signals, processes and part of Ray."""

import os
import signal
import time

import hosts
from hosts import Cluster
from outcome import HOSTS_MISSING, STOPPED, JobError, Redactor
from processes import Child, Processes

RAY_PORT = 6379
# How long hosts wait for each other; the job's environment may say otherwise.
JOIN_SECONDS = float(os.environ.get("VGG_JOIN_SECONDS", "600"))
# A host that was seen and is silent for so long is gone.
LOST_SECONDS = 20.0
# SageMaker kills 120 s after SIGTERM. main.py takes at most 30; the head then has to tell the others, and all end Ray.
STOP_SECONDS = 90.0
DELIVER_SECONDS = 15.0
POLL_SECONDS = 0.5


class Entry:
    """This container.

    Attributes:
        environment: what Ray and the driver inherit.
        join_deadline: when the hosts stop waiting for each other, on the monotonic clock.
        stop_requested_at: when SIGTERM came, on the monotonic clock; infinite before.
    """

    def __init__(self, cluster: Cluster, redact: Redactor, job_name: str) -> None:
        self.cluster = cluster
        self.job_name = job_name
        self.processes = Processes(redact)
        self.environment = dict(os.environ)
        self.stop_requested_at = float("inf")
        self._redact = redact
        self._started_at = time.monotonic()
        self.join_deadline = self._started_at + JOIN_SECONDS
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.request_stop)
        # Before the other hosts hear of this one: the driver may take its time, which they would take for its end.
        self._gpus = 0 if cluster.is_coordinator(cluster.current) else hosts.count_gpus()

    def log(self, text: str) -> None:
        seconds = time.monotonic() - self._started_at
        print(self._redact(f"[{self.cluster.current.name} {seconds:6.1f} s] {text}"), flush=True)

    def request_stop(self, *_: object) -> None:
        """Note that the job shall stop. No printing here: a signal may come in the middle of a print."""
        self.stop_requested_at = min(self.stop_requested_at, time.monotonic())

    @property
    def stop_requested(self) -> bool:
        return self.stop_requested_at < float("inf")

    def seconds_since_stop(self) -> float:
        """Seconds since SIGTERM; negative and infinite before."""
        return time.monotonic() - self.stop_requested_at

    def prepare_environment(self, token: str) -> None:
        """Set what Ray and the workers that it starts inherit."""
        self._redact.add(token)
        self.environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
        if len(self.cluster.hosts) == 1:
            # Ray's way to keep to loopback.
            self.environment["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        self.environment |= hosts.network_environment(self.cluster, self.environment, hosts.has_efa_device())

    def resolve(self, name: str) -> str:
        """Address of a host, whose name may not be known yet when this one starts.

        Raises:
            JobError: if it is not known when the time to join is over, or the job shall stop before.
        """
        while True:
            try:
                return hosts.address_of(name)
            except OSError as error:
                if self.stop_requested:
                    raise JobError(STOPPED, "stopped by SIGTERM before the job began") from error
                if time.monotonic() > self.join_deadline:
                    reason = f"after {JOIN_SECONDS:.0f} s, {name} has no address ({error})"
                    raise JobError(HOSTS_MISSING, reason) from error
            time.sleep(POLL_SECONDS)

    def start_ray(self, node_address: str, *flags: str) -> Child:
        """Start this host's part of Ray; `ray start --block` ends when one of Ray's processes does."""
        coordinator = self.cluster.is_coordinator(self.cluster.current)
        store = hosts.object_store_flags(hosts.free_shm_bytes(), hosts.memory_bytes())
        command = ["ray", "start", "--block", "--disable-usage-stats", f"--node-ip-address={node_address}", *flags]
        command += [f"--num-gpus={self._gpus}", *store, *(["--num-cpus=0"] if coordinator else [])]
        self.log(f"starting Ray on {node_address} with {self._gpus} GPUs and {' '.join(store)}")
        return self.processes.start(command, self.environment, quiet=True)


def describe_stopped_ray(name: str, ray: Child) -> str:
    """Why Ray is gone on a host, with the last that it said."""
    return f"Ray stopped on {name} with exit code {ray.code}\n" + "\n".join(ray.last_lines()[-8:])
