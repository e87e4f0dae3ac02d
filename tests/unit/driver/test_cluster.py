"""How workers share the CPUs and GPUs of a cluster, including one that can grow."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
import torch
import yaml

from vgg_ddp.config import TrainConfig
from vgg_ddp.driver.cluster import (
    Placement,
    Resources,
    connect,
    cpus_of_worker,
    largest_cluster,
    largest_share,
    place_workers,
)
from vgg_ddp.flags import UsageError


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
    assert largest_cluster(file) == [gpu, gpu, gpu, cpu, cpu]
    file.write_text(yaml.safe_dump({"max_workers": 4, "available_node_types": node_types}))
    assert largest_cluster(file) == [gpu, gpu, gpu, cpu]


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


GPU_NODE: Resources = {"CPU": 4.0, "GPU": 2.0}
CPU_NODE: Resources = {"CPU": 8.0}


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Placement]:
    """Place the workers of a run on a cluster that has some nodes, and may start others."""

    def place_on(
        present: list[Resources], possible: list[Resources], own_cluster: bool = False, **settings: object
    ) -> Placement:
        monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": node} for node in present])
        totals = {kind: sum(node.get(kind, 0.0) for node in present) for kind in ("CPU", "GPU")}
        monkeypatch.setattr(ray, "cluster_resources", lambda: totals)
        monkeypatch.setenv("HOME", str(tmp_path))
        kinds = {str(number): {"resources": node, "max_workers": 1} for number, node in enumerate(possible)}
        (tmp_path / "ray_bootstrap_config.yaml").write_text(yaml.safe_dump({"available_node_types": kinds}))
        return place_workers(TrainConfig(**settings), own_cluster)  # type: ignore[arg-type]

    return place_on


@pytest.mark.parametrize(
    ("present", "possible", "settings", "workers", "use_gpu"),
    [
        ([GPU_NODE], [], {}, 2, True),
        ([GPU_NODE], [], {"device": "cpu"}, 4, False),
        ([GPU_NODE], [], {"num_workers": 1}, 1, True),
        ([GPU_NODE], [], {"num_workers": 3}, 3, False),
        ([GPU_NODE], [], {"min_workers": 1}, 2, True),
        ([GPU_NODE], [], {"min_workers": 6}, 6, False),
        ([CPU_NODE], [], {}, 4, False),
        # Nodes that the autoscaler may start count.
        ([{"CPU": 0.0}], [GPU_NODE, GPU_NODE], {}, 4, True),
        ([{"CPU": 0.0}], [CPU_NODE], {}, 4, False),
    ],
)
def test_number_of_workers_defaults_to_one_per_gpu_or_four_on_cpus(
    place: Callable[..., Placement],
    present: list[Resources],
    possible: list[Resources],
    settings: dict[str, object],
    workers: int,
    use_gpu: bool,
) -> None:
    placement = place(present, possible, **settings)
    assert (placement.num_workers, placement.use_gpu) == (workers, use_gpu)
    assert placement.resources_per_worker.get("GPU", 0.0) == use_gpu
    assert placement.resources_per_worker["CPU"] > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_gpus_that_only_ray_sees_are_not_used(
    place: Callable[..., Placement], capsys: pytest.CaptureFixture[str]
) -> None:
    placement = place([GPU_NODE], [], own_cluster=True)
    assert (placement.num_workers, placement.use_gpu) == (4, False)
    note = capsys.readouterr().out
    assert note.startswith("NOTE: torch ") and note.endswith(". Training on CPUs.\n")
    with pytest.raises(UsageError, match=r"^--device gpu: torch .*, or use --device cpu\.$"):
        place([GPU_NODE], [], own_cluster=True, device="gpu")


def test_batch_that_does_not_split_over_the_gpus_is_refused(place: Callable[..., Placement]) -> None:
    with pytest.raises(
        UsageError, match="--batch-size 9 cannot be split evenly over 2 workers: use --batch-size 8 or 10"
    ):
        place([GPU_NODE], [], batch_size=9)


def test_gpus_that_ray_does_not_see_are_refused(place: Callable[..., Placement]) -> None:
    with pytest.raises(UsageError, match=r"^--device gpu: Ray sees 0 GPUs; wait until the cluster's machines are up"):
        place([CPU_NODE], [], device="gpu")
    with pytest.raises(UsageError, match=r"^--device gpu --num-workers 3: Ray sees 2 GPUs; use at most that many"):
        place([GPU_NODE], [], device="gpu", num_workers=3)


@pytest.mark.parametrize(("address", "warnings"), [("127.0.0.1", 0), ("10.0.0.7", 1)])
def test_cluster_that_listens_beyond_loopback_logs_a_warning(
    address: str, warnings: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    monkeypatch.setattr(
        ray, "init", lambda **_: SimpleNamespace(address_info={"node_ip_address": address}, dashboard_url="")
    )
    connect("local")
    assert len(caplog.records) == warnings
