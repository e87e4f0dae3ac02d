"""How workers share the CPUs and GPUs of a cluster, including one that can grow."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
import yaml

from vgg_ddp.config import TrainConfig
from vgg_ddp.driver.cluster import Resources, connect, cpus_of_worker, largest_cluster, largest_share


def test_largest_cluster_has_the_maximum_of_each_node_type(tmp_path: Path) -> None:
    node_types = {
        "head": {"resources": {"CPU": 0}, "max_workers": 0, "node_config": {}},
        "gpu": {"resources": {"CPU": 4, "GPU": 1, "memory": 100}, "max_workers": 3, "node_config": {}},
        "cpu": {"resources": {"CPU": 8}, "max_workers": 2, "node_config": {}},
        "off": {"resources": {"CPU": 96, "GPU": 8}, "max_workers": 0, "node_config": {}},
    }
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump({"cluster_name": "test", "available_node_types": node_types}))
    gpu, cpu = node_types["gpu"]["resources"], node_types["cpu"]["resources"]
    # In the file they are sorted by name.
    assert largest_cluster(file) == [cpu, cpu, gpu, gpu, gpu]


def test_machine_without_a_cluster_file_adds_no_nodes(tmp_path: Path) -> None:
    assert largest_cluster(tmp_path / "cluster.yaml") == []


@pytest.mark.parametrize(
    ("nodes", "workers", "expected"),
    [
        ([2], 1, 1.0),
        ([2], 2, 1.0),
        ([2], 3, 0.6666),
        ([2], 4, 0.5),
        # With an equal share of the total, 0.75, only six of the eight workers would fit.
        ([2, 2, 2], 8, 0.6666),
        ([4, 4], 9, 0.8),
        ([1, 1], 3, 0.5),
        ([1, 6], 7, 1.0),
        ([1, 6], 8, 0.8571),
        ([0, 2], 2, 1.0),
        ([], 2, 0.0),
    ],
)
def test_shares_of_cpus_fit_on_the_nodes(nodes: list[float], workers: int, expected: float) -> None:
    resources: list[Resources] = [{"CPU": float(cpus)} for cpus in nodes]
    assert largest_share(resources, workers, use_gpu=False) == expected


def test_workers_with_gpus_share_the_cpus_of_nodes_with_gpus() -> None:
    nodes: list[Resources] = [{"CPU": 64.0}, {"CPU": 2.0, "GPU": 4.0}]
    assert largest_share(nodes, 4, use_gpu=True) == 0.5
    assert largest_share(nodes, 2, use_gpu=True) == 1.0
    assert largest_share(nodes, 4, use_gpu=True, part_of_cpus=0.5) == 0.25


def test_elastic_run_sizes_shares_for_its_minimum_of_workers() -> None:
    nodes: list[Resources] = [{"CPU": 2.0}]
    shares = [
        cpus_of_worker(TrainConfig(min_workers=fewest, num_workers=8, ingest=ingest), nodes, use_gpu=False)
        for ingest in ("memory", "stream")
        for fewest in (1, 4)
    ]
    assert shares == [1.0, 0.5, 0.5, 0.25]


@pytest.mark.parametrize(("address", "warnings"), [("127.0.0.1", 0), ("10.0.0.7", 1)])
def test_cluster_that_listens_beyond_loopback_logs_a_warning(
    address: str, warnings: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    monkeypatch.setattr(ray, "init", lambda **_: SimpleNamespace(address_info={"node_ip_address": address}))
    connect("local")
    assert len(caplog.records) == warnings
