"""CPUs and GPUs of replicas, by what a cluster has; and their models."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from vgg_ddp.flags import UsageError
from vgg_ddp.serving.config import ServeConfig
from vgg_ddp.serving.placement import actor_options

Nodes = list[dict[str, float]]


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Any:
    def options(nodes: Nodes, own_cluster: bool = False, **settings: Any) -> dict[str, Any]:
        monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": node} for node in nodes])
        return actor_options(ServeConfig("run", **settings), own_cluster)

    environment = {"py_modules": ["gcs://code.zip"], "env_vars": {"A": "1"}}
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(runtime_env=environment))
    monkeypatch.delenv("OMP_WAIT_POLICY")
    return options


@pytest.mark.parametrize(
    ("nodes", "replicas", "own_cluster", "cpus"),
    [
        ([{"CPU": 8.0}], 1, True, 8),
        ([{"CPU": 8.0}], 3, True, 2),
        ([{"CPU": 2.0}], 3, True, 0.6666),
        ([{"CPU": 8.0}, {"CPU": 8.0}], 4, False, 1),
        ([{"CPU": 0.0}, {"CPU": 2.0}], 4, False, 0.5),
    ],
)
def test_replicas_share_the_cores_of_an_own_cluster_and_take_one_cpu_of_another(
    place: Any, nodes: Nodes, replicas: int, own_cluster: bool, cpus: float
) -> None:
    options = place(nodes, own_cluster, replicas=replicas)
    assert (options["num_cpus"], options["num_gpus"]) == (cpus, 0)


def test_replicas_keep_the_code_and_the_variables_of_the_job(place: Any) -> None:
    assert place([{"CPU": 1.0}])["runtime_env"] == {
        "py_modules": ["gcs://code.zip"],
        "env_vars": {"A": "1", "OMP_WAIT_POLICY": "passive"},
    }


def test_gpus_are_used_if_there_is_one_for_each_replica(place: Any, capsys: pytest.CaptureFixture[str]) -> None:
    nodes = [{"CPU": 4.0, "GPU": 1.0}] * 2
    assert place(nodes, replicas=2)["num_gpus"] == 1
    assert place(nodes, replicas=2, device="cpu")["num_gpus"] == 0
    assert capsys.readouterr().out == ""
    assert place(nodes, replicas=3)["num_gpus"] == 0
    assert capsys.readouterr().out == "NOTE: Ray sees 2 GPUs for 3 replicas. Serving on CPUs.\n"


def test_missing_gpus_and_cpus_are_refused(place: Any) -> None:
    with pytest.raises(UsageError, match="--device gpu: Ray sees 0 GPUs for 1 replica; use fewer --replicas, or --dev"):
        place([{"CPU": 4.0}], device="gpu")
    with pytest.raises(UsageError, match=r"--replicas 1: Ray sees no CPUs for them \(ray status\)"):
        place([{"CPU": 0.0}])


# Ray Serve's own.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_damaged_model_is_refused_by_a_replica_in_one_line(model_folder: Path, tmp_path: Path) -> None:
    # Slow to import.
    import torch

    from vgg_ddp.serving.app import load_model

    content = (model_folder / "model.safetensors").read_bytes()
    for damaged in (content[:-1000], content[:100], b"", content.replace(b"vgg_ddp", b"another")):
        (tmp_path / "model.safetensors").write_bytes(damaged)
        with pytest.raises(UsageError, match="cannot be loaded as a model of this program") as caught:
            load_model(str(tmp_path), torch.device("cpu"))
        assert "\n" not in str(caught.value)
