"""Memory and cores available to this process, limited by the machine or by its control group (cgroup)."""

import math
import os
from collections.abc import Iterator
from pathlib import Path


def available_memory_bytes(root: Path = Path("/")) -> int:
    """Memory available on this machine, or in this process's control group.

    Without /proc, as on macOS, this is the machine's total memory.
    """
    if not (root / "proc/meminfo").exists():
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    meminfo = dict(line.split(":") for line in (root / "proc/meminfo").read_text().splitlines())
    available = int(meminfo["MemAvailable"].split()[0]) * 1024
    v2 = ("memory.max", "memory.current", "memory.stat")
    v1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat")
    for limit, used, *statistics in _control_group_settings(root, "memory", v2, v1):
        # Without a limit, the value is max (v2) or larger than any memory (v1).
        if limit != "max":
            sizes = dict(zip(statistics[::2], map(int, statistics[1::2]), strict=True))
            # The page cache counts as used, but the kernel frees it when memory is needed.
            cached = sizes.get("total_inactive_file", sizes["inactive_file"])
            available = min(available, int(limit) - int(used) + cached)
    return max(0, available)


def usable_cores(root: Path = Path("/")) -> int:
    """Number of cores that this process may use, at least one.

    The number of cores it is bound to (`taskset`, `docker --cpuset-cpus`, Slurm), or its control group's CPU quota
    (`docker --cpus`, a Kubernetes limit) rounded up, whichever is smaller.
    """
    # macOS does not bind processes to cores.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for quota, period in _control_group_settings(root, "cpu", ("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        # Without a quota, the value is max (v2) or -1 (v1).
        if quota != "max" and int(quota) > 0:
            cores = min(cores, math.ceil(int(quota) / int(period)))
    return cores


def _control_group_settings(
    root: Path, controller: str, v2_files: tuple[str, ...], v1_files: tuple[str, ...]
) -> Iterator[list[str]]:
    """The contents of these files, split into words, for each control group of this process that has them (v2 or v1).

    In a container, the cgroup path may be the host's although the mounted root is already the container's own.
    """
    groups = root / "proc/self/cgroup"
    for line in groups.read_text().splitlines() if groups.exists() else ():
        _, controllers, group = line.split(":", 2)
        if not controllers:
            top, files = root / "sys/fs/cgroup", v2_files
        elif controller in controllers.split(","):
            top, files = root / "sys/fs/cgroup" / controller, v1_files
        else:
            continue
        for subpath in {group.strip("/"), ""}:
            paths = [top / subpath / file for file in files]
            if all(path.exists() for path in paths):
                yield " ".join(path.read_text() for path in paths).split()
