import json
import os
from pathlib import Path

import pytest

from sagemaker_entry.container.hosts import (
    Cluster,
    Host,
    count_gpus,
    find_missing,
    network_environment,
    object_store_flags,
    read_cluster,
)

GIB = 2**30
TWO_GROUPS = {"coordinator": ("ml.m5.large", ["algo-3"]), "workers": ("ml.g5.12xlarge", ["algo-1", "algo-2"])}


def write_config(folder: Path, current: str, groups: dict[str, tuple[str, list[str]]]) -> Path:
    hosts = [name for _, names in groups.values() for name in names]
    config = {
        "current_host": current,
        "hosts": hosts,
        "network_interface_name": "eth0",
        "instance_groups": [
            {"instance_group_name": group, "instance_type": kind, "hosts": names}
            for group, (kind, names) in groups.items()
        ],
    }
    file = folder / "resourceconfig.json"
    file.write_text(json.dumps(config))
    return file


def cluster_of(tmp_path: Path, current: str, groups: dict[str, tuple[str, list[str]]]) -> Cluster:
    return read_cluster(write_config(tmp_path, current, groups))


def test_hosts_are_sorted_by_number(tmp_path: Path) -> None:
    names = [f"algo-{number}" for number in (10, 2, 1, 9, 11)]
    cluster = cluster_of(tmp_path, "algo-10", {"all": ("ml.c5.xlarge", names)})
    assert [host.name for host in cluster.hosts] == ["algo-1", "algo-2", "algo-9", "algo-10", "algo-11"]
    assert cluster.head.name == "algo-1"
    assert not cluster.is_head


def test_coordinator_is_the_head_regardless_of_its_number(tmp_path: Path) -> None:
    cluster = cluster_of(tmp_path, "algo-3", TWO_GROUPS)
    assert cluster.is_head and cluster.is_coordinator(cluster.current)
    assert [host.name for host in cluster.others] == ["algo-1", "algo-2"]


def test_only_host_trains_even_in_the_coordinator_group(tmp_path: Path) -> None:
    cluster = cluster_of(tmp_path, "algo-1", {"coordinator": ("ml.g5.xlarge", ["algo-1"])})
    assert cluster.is_head and not cluster.is_coordinator(cluster.current)


def test_configuration_without_groups_is_one_group(tmp_path: Path) -> None:
    file = tmp_path / "resourceconfig.json"
    config = {"current_host": "algo-2", "current_instance_type": "ml.c5.xlarge", "hosts": ["algo-2", "algo-1"]}
    file.write_text(json.dumps(config))
    cluster = read_cluster(file)
    assert cluster.head == Host("algo-1", "", "ml.c5.xlarge")
    assert cluster.interface == "eth0"


def install_nvidia_smi(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = folder / "nvidia-smi"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_gpus_listed_by_the_driver_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_nvidia_smi(tmp_path, "echo 'GPU 0: A10G (UUID: a)'; echo 'GPU 1: A10G (UUID: b)'", monkeypatch)
    assert count_gpus() == 2


def test_broken_or_missing_driver_means_no_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_nvidia_smi(tmp_path, "echo 'GPU 0: x'; exit 9", monkeypatch)
    assert count_gpus() == 0
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    assert count_gpus() == 0


def test_network_settings_use_this_hosts_interface_and_keep_the_jobs_own(tmp_path: Path) -> None:
    cluster = cluster_of(tmp_path, "algo-1", TWO_GROUPS)
    assert network_environment(cluster, {"NCCL_SOCKET_IFNAME": "eth7"}, has_efa=False) == {"GLOO_SOCKET_IFNAME": "eth0"}
    efa = {"FI_PROVIDER": "efa", "FI_EFA_FORK_SAFE": "1", "RDMAV_FORK_SAFE": "1"}
    assert efa.items() <= network_environment(cluster, {}, has_efa=True).items()
    assert not efa.keys() & network_environment(cluster, {}, has_efa=False).keys()
    alone = cluster_of(tmp_path, "algo-1", {"all": ("ml.g5.12xlarge", ["algo-1"])})
    assert network_environment(alone, {}, has_efa=True) == {"GLOO_SOCKET_IFNAME": "lo"}
    assert "FI_EFA_USE_DEVICE_RDMA" not in network_environment(cluster, {}, has_efa=True)
    large = cluster_of(tmp_path, "algo-1", {"all": ("ml.p4d.24xlarge", ["algo-1", "algo-2"])})
    assert network_environment(large, {}, has_efa=True)["FI_EFA_USE_DEVICE_RDMA"] == "1"


def test_object_store_fits_in_shared_memory_or_is_on_disk() -> None:
    assert object_store_flags(100 * GIB, 64 * GIB) == [f"--object-store-memory={int(64 * GIB * 0.3)}"]
    assert object_store_flags(8 * GIB, 64 * GIB) == [f"--object-store-memory={int(8 * GIB * 0.9)}"]
    tiny = object_store_flags(64 * 2**20, 64 * GIB)
    assert "--plasma-directory=/tmp" in tiny
    assert int(tiny[0].partition("=")[2]) >= 512 * 2**20


def host_list(cluster: Cluster) -> list[tuple[Host, str]]:
    return [(host, f"10.0.0.{index}") for index, host in enumerate(cluster.hosts)]


def test_missing_hosts_and_gpus_are_named(tmp_path: Path) -> None:
    cluster = cluster_of(tmp_path, "algo-3", TWO_GROUPS)
    hosts, head = host_list(cluster), cluster.head
    assert find_missing(hosts, {"10.0.0.0": 4, "10.0.0.1": 4, "10.0.0.2": 0}, head) == []
    assert find_missing(hosts, {"10.0.0.0": 4, "10.0.0.2": 0}, head) == ["algo-2 did not join"]
    assert find_missing(hosts, {"10.0.0.0": 4, "10.0.0.1": 3, "10.0.0.2": 0}, head) == ["algo-2 has 3 of 4 GPUs"]
    without_gpus = find_missing(hosts, {"10.0.0.0": 0, "10.0.0.1": 0, "10.0.0.2": 0}, head)
    assert without_gpus == [
        f"{name} has no working GPU, although it is an ml.g5.12xlarge" for name in ("algo-1", "algo-2")
    ]


def test_cpu_instances_need_no_gpu(tmp_path: Path) -> None:
    cluster = cluster_of(tmp_path, "algo-1", {"all": ("ml.c5.xlarge", ["algo-1", "algo-2"])})
    assert find_missing(host_list(cluster), {"10.0.0.0": 0, "10.0.0.1": 0}, cluster.head) == []
