"""The job's hosts and what each has: roles, addresses, GPUs, network, shared memory.

SageMaker describes them in /opt/ml/input/config/resourceconfig.json:
https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-training-algo-running-container.html
"""

import json
import os
import re
import socket
import subprocess
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COORDINATOR_GROUP = "coordinator"
LOOPBACK = "127.0.0.1"
# Where Ray looks for shared memory.
SHM = Path("/dev/shm")
# Less than this cannot hold CIFAR-10 next to what Ray itself keeps there.
LEAST_STORE_BYTES = 512 * 2**20
MEMORY_SHARE, SHM_SHARE = 0.3, 0.9
RDMA_INSTANCES = ("ml.p4", "ml.p5", "ml.p6", "ml.trn")


@dataclass(frozen=True)
class Host:
    """One container of the job."""

    name: str
    group: str
    instance_type: str


@dataclass(frozen=True)
class Cluster:
    """All hosts of the job in order of their numbers, and which of them this one is."""

    hosts: tuple[Host, ...]
    current: Host
    interface: str

    @property
    def head(self) -> Host:
        """The host that runs Ray's head and the driver: the coordinator where there is one, else the first."""
        return next((host for host in self.hosts if self.is_coordinator(host)), self.hosts[0])

    @property
    def is_head(self) -> bool:
        return self.current == self.head

    @property
    def others(self) -> tuple[Host, ...]:
        return tuple(host for host in self.hosts if host != self.head)

    def is_coordinator(self, host: Host) -> bool:
        """Whether a host only runs the driver, and trains nothing. The only host of a job always trains."""
        return host.group == COORDINATOR_GROUP and len(self.hosts) > 1


def read_cluster(path: Path) -> Cluster:
    """Read the resource configuration. Jobs without instance groups have one group that holds all hosts."""
    config: dict[str, Any] = json.loads(path.read_text())
    groups = config.get("instance_groups") or [
        {
            "instance_group_name": config.get("current_group_name", ""),
            "instance_type": config.get("current_instance_type", ""),
            "hosts": config["hosts"],
        }
    ]
    hosts = [
        Host(name, group["instance_group_name"], group["instance_type"]) for group in groups for name in group["hosts"]
    ]
    # By number: sorted as text, algo-10 would come before algo-2.
    hosts.sort(key=lambda host: (int(re.sub(r"\D", "", host.name) or 0), host.name))
    current = next(host for host in hosts if host.name == config["current_host"])
    return Cluster(tuple(hosts), current, config.get("network_interface_name", "eth0"))


def address_of(name: str) -> str:
    """IPv4 address of a host.

    Raises:
        OSError: if its name is not known (yet).
    """
    return socket.gethostbyname(name)


def count_gpus() -> int:
    """How many GPUs the driver of this host shows; 0 where there is no driver."""
    try:
        listing = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return 0
    return sum(line.startswith("GPU ") for line in listing.stdout.splitlines())


def network_environment(cluster: Cluster, environment: Mapping[str, str], has_efa: bool) -> dict[str, str]:
    """What NCCL, gloo and libfabric need to know of this host's network; what the job has set is left alone."""
    if len(cluster.hosts) == 1:
        return {}
    settings = {"NCCL_SOCKET_IFNAME": cluster.interface, "GLOO_SOCKET_IFNAME": cluster.interface}
    if has_efa:
        # https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/efa-start-nccl.html
        settings["FI_PROVIDER"] = "efa"
        if cluster.current.instance_type.startswith(RDMA_INSTANCES):
            settings["FI_EFA_USE_DEVICE_RDMA"] = "1"
    return {name: value for name, value in settings.items() if name not in environment}


def has_efa_device() -> bool:
    """Whether an EFA adapter is there (only adapters that the instance has and the job may use show up here)."""
    return any(Path("/sys/class/infiniband").glob("*")) and Path("/dev/infiniband").exists()


def object_store_flags(shm_bytes: int, memory_bytes: int) -> list[str]:
    """Flags of `ray start` for an object store that fits into /dev/shm, or lies on the disk where that is tiny.

    Without them, Ray would move to the disk as soon as 30 % of the memory exceed /dev/shm.
    """
    wanted = int(memory_bytes * MEMORY_SHARE)
    if shm_bytes * SHM_SHARE < LEAST_STORE_BYTES:
        size = min(wanted, 4 * LEAST_STORE_BYTES)
        return [f"--object-store-memory={size}", "--plasma-directory=/tmp"]
    return [f"--object-store-memory={min(wanted, int(shm_bytes * SHM_SHARE))}"]


def free_shm_bytes() -> int:
    status = os.statvfs(SHM)
    return status.f_bavail * status.f_frsize


def memory_bytes() -> int:
    """Memory of the machine; SageMaker's containers have all of it."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def complaints(hosts: Sequence[tuple[Host, str]], nodes: Mapping[str, float], head: Host) -> list[str]:
    """What is missing, given each host's address and the GPUs of each of Ray's live nodes by address.

    GPUs are compared within an instance group, whose instances are alike: one that shows fewer has a broken GPU.
    """
    missing = [host.name for host, address in hosts if address not in nodes]
    found = [f"{', '.join(missing)} did not join"] if missing else []
    counts: defaultdict[str, int] = defaultdict(int)
    for host, address in hosts:
        counts[host.group] = max(counts[host.group], int(nodes.get(address, 0)))
    for host, address in hosts:
        if address not in nodes or (host == head and host.group == COORDINATOR_GROUP and len(hosts) > 1):
            continue
        gpus, expected = int(nodes[address]), counts[host.group]
        if gpus < expected:
            found.append(f"{host.name} has {gpus} of {expected} GPUs")
        elif not gpus and re.match(r"ml\.[gp]\d", host.instance_type):
            found.append(f"{host.name} shows no GPU, although it is an {host.instance_type}")
    return found
