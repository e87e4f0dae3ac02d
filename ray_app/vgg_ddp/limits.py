"""Memory and cores that are there for this process: what the machine has, or the control group that it is in."""

import math
import os
from collections.abc import Iterator
from pathlib import Path


def available_memory_bytes(root: Path = Path("/")) -> int:
    """Memory that this machine, or the control group that this process is in, has left.

    Without /proc, as on macOS, all that the machine has.
    """
    if not (root / "proc/meminfo").exists():
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    meminfo = dict(line.split(":") for line in (root / "proc/meminfo").read_text().splitlines())
    available = int(meminfo["MemAvailable"].split()[0]) * 1024
    v2 = ("memory.max", "memory.current", "memory.stat")
    v1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat")
    for limit, used, *statistics in _control_group_settings(root, "memory", v2, v1):
        # Where there is no limit, it is max, or a number beyond any memory.
        if limit != "max":
            sizes = dict(zip(statistics[::2], map(int, statistics[1::2]), strict=True))
            # Files that were read stay in memory until it is wanted for something else.
            cached = sizes.get("total_inactive_file", sizes["inactive_file"])
            available = min(available, int(limit) - int(used) + cached)
    return max(0, available)


def usable_cores(root: Path = Path("/")) -> int:
    """Cores that this process may keep busy, at least one.

    Those that it is bound to (`taskset`, `docker --cpuset-cpus`, Slurm), or what the quota of its control group pays
    for (`docker --cpus`, a Kubernetes limit), rounded up.
    """
    # macOS binds no process to cores.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for quota, period in _control_group_settings(root, "cpu", ("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        # Where there is no quota, it is max, or -1.
        if quota != "max" and int(quota) > 0:
            cores = min(cores, math.ceil(int(quota) / int(period)))
    return cores


def _control_group_settings(
    root: Path, controller: str, v2_files: tuple[str, ...], v1_files: tuple[str, ...]
) -> Iterator[list[str]]:
    """The words in files of each control group of this process that has them, of version 2 or 1.

    A container may see its own group as the root of all, and yet be told its place on the machine outside.
    """
    groups = root / "proc/self/cgroup"
    for line in groups.read_text().splitlines() if groups.exists() else ():
        _, controllers, place = line.split(":", 2)
        if not controllers:
            top, files = root / "sys/fs/cgroup", v2_files
        elif controller in controllers.split(","):
            top, files = root / "sys/fs/cgroup" / controller, v1_files
        else:
            continue
        for place_or_root in {place.strip("/"), ""}:
            paths = [top / place_or_root / file for file in files]
            if all(path.exists() for path in paths):
                yield " ".join(path.read_text() for path in paths).split()
