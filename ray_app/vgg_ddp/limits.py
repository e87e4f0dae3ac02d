"""Memory and cores that are there for this process: what the machine has, or the control group that it is in."""

import math
import os
from collections.abc import Iterator
from pathlib import Path


def available_memory_bytes(root: Path = Path("/")) -> int:
    """Memory that this machine, or the control group that this process is in, has left."""
    meminfo = dict(line.split(":") for line in (root / "proc/meminfo").read_text().splitlines())
    available = int(meminfo["MemAvailable"].split()[0]) * 1024
    for folder, version in _control_groups(root, "memory"):
        limit_name, used_name = {
            2: ("memory.max", "memory.current"),
            1: ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        }[version]
        if (folder / limit_name).exists():
            limit = (folder / limit_name).read_text().strip()
            # Where there is no limit, the file says max, or a number beyond any memory.
            if limit != "max":
                available = min(available, int(limit) - int((folder / used_name).read_text()))
    return max(0, available)


def usable_cores(root: Path = Path("/")) -> int:
    """Cores that this process may keep busy, at least one.

    Those that it is bound to (`taskset`, `docker --cpuset-cpus`, Slurm), or what the quota of its control group pays
    for (`docker --cpus`, a Kubernetes limit), rounded up.
    """
    cores = len(os.sched_getaffinity(0))
    for folder, version in _control_groups(root, "cpu"):
        names = {2: ("cpu.max",), 1: ("cpu.cfs_quota_us", "cpu.cfs_period_us")}[version]
        if all((folder / name).exists() for name in names):
            quota, period = " ".join((folder / name).read_text() for name in names).split()
            # Where there is no quota, the file says max, or -1.
            if quota != "max" and int(quota) > 0:
                cores = min(cores, math.ceil(int(quota) / int(period)))
    return cores


def _control_groups(root: Path, controller: str) -> Iterator[tuple[Path, int]]:
    """Folders of this process' control groups that may limit memory or cpu, each with its version, 2 or 1.

    A container may see its own group as the root of all, and yet be told its place on the machine outside.
    """
    for line in (root / "proc/self/cgroup").read_text().splitlines():
        _, controllers, place = line.split(":", 2)
        if not controllers:
            folder, version = root / "sys/fs/cgroup", 2
        elif controller in controllers.split(","):
            folder, version = root / "sys/fs/cgroup" / controller, 1
        else:
            continue
        for place_or_root in {place.strip("/"), ""}:
            yield folder / place_or_root, version
