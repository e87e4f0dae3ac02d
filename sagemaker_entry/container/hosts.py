"""The job's hosts: roles, addresses, GPUs, network, shared memory.

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

from sagemaker_entry.contract import COORDINATOR_GROUP

LOOPBACK = "127.0.0.1"
# Where Ray looks for shared memory.
SHM = Path("/dev/shm")
# CIFAR-10 and Ray's own objects need at least this much.
MIN_STORE_BYTES = 512 * 2**20
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
    """All hosts of the job, sorted by number, and the one this process runs on."""

    hosts: tuple[Host, ...]
    current: Host
    interface: str

    @property
    def head(self) -> Host:
        """The host that runs Ray's head and the driver: the coordinator if there is one, otherwise the first host."""
        return next((host for host in self.hosts if self.is_coordinator(host)), self.hosts[0])

    @property
    def is_head(self) -> bool:
        return self.current == self.head

    @property
    def others(self) -> tuple[Host, ...]:
        return tuple(host for host in self.hosts if host != self.head)

    def is_coordinator(self, host: Host) -> bool:
        """Whether a host runs Ray's head and the driver but does not train. A job's only host always trains."""
        return host.group == COORDINATOR_GROUP and len(self.hosts) > 1


def read_cluster(path: Path) -> Cluster:
    """Read the resource configuration. Without instance groups, all hosts form one group."""
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
    # By number: as text, algo-10 would sort before algo-2.
    hosts.sort(key=lambda host: (int(re.sub(r"\D", "", host.name) or 0), host.name))
    current = next(host for host in hosts if host.name == config["current_host"])
    return Cluster(tuple(hosts), current, config.get("network_interface_name", "eth0"))


def address_of(name: str) -> str:
    """IPv4 address of a host.

    Raises:
        OSError: if the name does not resolve (yet).
    """
    return socket.gethostbyname(name)


def count_gpus() -> int:
    """Number of GPUs that nvidia-smi lists; 0 without an NVIDIA driver."""
    try:
        listing = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return 0
    return sum(line.startswith("GPU ") for line in listing.stdout.splitlines())


def network_environment(cluster: Cluster, environment: Mapping[str, str], has_efa: bool) -> dict[str, str]:
    """Network settings of NCCL, Gloo and libfabric for this host, except variables that the job already set."""
    if len(cluster.hosts) == 1:
        # Nothing outside needs to reach the workers.
        settings = {"GLOO_SOCKET_IFNAME": "lo"}
        has_efa = False
    else:
        settings = {"NCCL_SOCKET_IFNAME": cluster.interface, "GLOO_SOCKET_IFNAME": cluster.interface}
    if has_efa:
        # https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/efa-start-nccl.html. The last two protect processes that
        # fork on older kernels; newer ones do not need them (https://github.com/aws/aws-ofi-nccl/pull/82).
        settings |= {"FI_PROVIDER": "efa", "FI_EFA_FORK_SAFE": "1", "RDMAV_FORK_SAFE": "1"}
        if cluster.current.instance_type.startswith(RDMA_INSTANCES):
            settings["FI_EFA_USE_DEVICE_RDMA"] = "1"
    return {name: value for name, value in settings.items() if name not in environment}


def has_efa_device() -> bool:
    """Whether this host has an EFA adapter that the job can use."""
    return any(Path("/sys/class/infiniband").glob("*")) and Path("/dev/infiniband").exists()


def object_store_flags(shm_bytes: int, memory_bytes: int) -> list[str]:
    """Flags of `ray start` for an object store that fits in /dev/shm, or on disk if /dev/shm is tiny.

    By default, Ray puts the store on disk if 30 % of the memory does not fit in /dev/shm.
    """
    wanted = int(memory_bytes * MEMORY_SHARE)
    if shm_bytes * SHM_SHARE < MIN_STORE_BYTES:
        size = min(wanted, 4 * MIN_STORE_BYTES)
        return [f"--object-store-memory={size}", "--plasma-directory=/tmp"]
    return [f"--object-store-memory={min(wanted, int(shm_bytes * SHM_SHARE))}"]


def free_shm_bytes() -> int:
    status = os.statvfs(SHM)
    return status.f_bavail * status.f_frsize


def memory_bytes() -> int:
    """Memory of the machine. A SageMaker container may use all of it."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def find_missing(hosts: Sequence[tuple[Host, str]], nodes: Mapping[str, float], head: Host) -> list[str]:
    """Describe the hosts and GPUs missing from Ray, given each host's address and the GPU count of each live Ray node.

    The instances of a group are identical, so a host with fewer GPUs than the others has a broken one.
    """
    missing = [host.name for host, address in hosts if address not in nodes]
    problems = [f"{', '.join(missing)} did not join"] if missing else []
    counts: defaultdict[str, int] = defaultdict(int)
    for host, address in hosts:
        counts[host.group] = max(counts[host.group], int(nodes.get(address, 0)))
    for host, address in hosts:
        if address not in nodes or (host == head and host.group == COORDINATOR_GROUP and len(hosts) > 1):
            continue
        gpus, expected = int(nodes[address]), counts[host.group]
        if gpus < expected:
            problems.append(f"{host.name} has {gpus} of {expected} GPUs")
        elif not gpus and re.match(r"ml\.[gp]\d", host.instance_type):
            problems.append(f"{host.name} has no working GPU, although it is an {host.instance_type}")
    return problems
