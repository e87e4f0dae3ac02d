"""Memory and cores available to a process, with and without cgroup limits."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from vgg_ddp.driver.ray_environment import PACKAGE
from vgg_ddp.machine.limits import available_memory_bytes, usable_cores

MIB = 2**20
V2, V1 = "0::/mine\n", "9:cpu,cpuacct:/other\n4:memory:/mine\n0::/\n"
NO_LIMIT = 9223372036854771712
# Two megabytes of the used memory are page cache.
STAT = f"anon {MIB}\ninactive_file {2 * MIB}\nactive_file {MIB}"
V1_STAT = f"inactive_file 4096\ntotal_rss {MIB}\ntotal_inactive_file {2 * MIB}"
V1_FOLDER = "memory/mine/memory"


def write_groups(root: Path, groups: str, files: dict[str, object]) -> None:
    """Write the files with which Linux describes a process's control groups."""
    everything = {f"sys/fs/cgroup/{name}": f"{content}\n" for name, content in files.items()}
    for name, content in (everything | {"proc/self/cgroup": groups}).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        (V2, {}, 100),
        (V2, {"mine/memory.max": "max", "mine/memory.current": 5 * MIB, "mine/memory.stat": STAT}, 100),
        (V2, {"mine/memory.max": 60 * MIB, "mine/memory.current": 22 * MIB, "mine/memory.stat": STAT}, 40),
        (V2, {"mine/memory.max": 20 * MIB, "mine/memory.current": 23 * MIB, "mine/memory.stat": STAT}, 0),
        # A container whose mounted root is its own group.
        (V2, {"memory.max": 60 * MIB, "memory.current": 22 * MIB, "memory.stat": STAT}, 40),
        (V1, {f"{V1_FOLDER}.limit_in_bytes": NO_LIMIT, f"{V1_FOLDER}.usage_in_bytes": 5 * MIB}, 100),
        (V1, {f"{V1_FOLDER}.limit_in_bytes": 60 * MIB, f"{V1_FOLDER}.usage_in_bytes": 22 * MIB}, 40),
    ],
)
def test_available_memory_respects_the_control_group(
    groups: str, files: dict[str, object], expected: int, tmp_path: Path
) -> None:
    write_groups(tmp_path, groups, files if groups == V2 else files | {f"{V1_FOLDER}.stat": V1_STAT})
    (tmp_path / "proc/meminfo").write_text("MemTotal: 204800 kB\nMemAvailable: 102400 kB\n")
    assert available_memory_bytes(tmp_path) == expected * MIB


def test_available_memory_is_less_than_the_total() -> None:
    assert 0 < available_memory_bytes() <= psutil.virtual_memory().total


def test_machine_without_proc_and_core_binding_reports_its_totals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    assert available_memory_bytes(tmp_path) == pytest.approx(psutil.virtual_memory().total, rel=0.01)
    assert usable_cores(tmp_path) == os.cpu_count()


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        (V2, {}, 8),
        (V2, {"mine/cpu.max": "max 100000"}, 8),
        (V2, {"mine/cpu.max": "250000 100000"}, 3),
        (V2, {"mine/cpu.max": "50000 100000"}, 1),
        (V2, {"mine/cpu.max": "6400000 100000"}, 8),
        # A container whose mounted root is its own group.
        (V2, {"cpu.max": "200000 100000"}, 2),
        (V1, {"cpu/other/cpu.cfs_quota_us": -1, "cpu/other/cpu.cfs_period_us": 100000}, 8),
        (V1, {"cpu/other/cpu.cfs_quota_us": 150000, "cpu/other/cpu.cfs_period_us": 50000}, 3),
        (V1, {"cpu/cpu.cfs_quota_us": 100000, "cpu/cpu.cfs_period_us": 100000}, 1),
    ],
)
def test_usable_cores_respect_the_cpu_quota(
    groups: str, files: dict[str, object], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_groups(tmp_path, groups, files)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert usable_cores(tmp_path) == expected


def test_process_bound_to_one_core_uses_one() -> None:
    bound = {min(os.sched_getaffinity(0))}
    program = "from vgg_ddp.machine.limits import usable_cores; print(usable_cores())"
    printed = subprocess.check_output(
        [sys.executable, "-c", f"import os; os.sched_setaffinity(0, {bound}); {program}"],
        env=os.environ | {"PYTHONPATH": str(PACKAGE.parent)},
    )
    assert printed == b"1\n"
