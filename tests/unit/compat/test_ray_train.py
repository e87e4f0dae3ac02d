"""Ray's trainer without unused actors, and the fallback to its normal behavior if its private modules have moved."""

import importlib
import os
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import OutOfMemoryError
from ray.train.torch import TorchConfig, TorchTrainer

from vgg_ddp.compat import ray_train
from vgg_ddp.compat.ray_train import CLEANER, DATASETS, LeanTrainer, TolerantBackend, torch_config
from vgg_ddp.driver import trainer


def names(of: TorchTrainer) -> set[str]:
    return {type(callback).__name__ for callback in of._create_default_callbacks()}


def test_trainer_omits_actors_or_falls_back(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    plain, unused = names(TorchTrainer(print)), {"DatasetsCallback", "PlacementGroupCleanerCallback"}
    assert names(LeanTrainer(print, own_cluster=False)) == plain - unused | {"CleanerCallback"}
    assert names(LeanTrainer(print, own_cluster=True)) == plain - unused
    assert not caplog.records
    for module, _ in (DATASETS, CLEANER):
        monkeypatch.setitem(sys.modules, module, None)
    for _ in range(2):
        assert names(LeanTrainer(print, own_cluster=True)) == plain
    assert len(caplog.records) == 2


def test_driver_imports_without_private_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.startswith("ray.") and "._internal" in name]:
        monkeypatch.setitem(sys.modules, module, None)
    for module in (ray_train, trainer):
        package, _, name = module.__name__.rpartition(".")
        # Also restores the attribute of the package afterwards.
        monkeypatch.setattr(sys.modules[package], name, module)
        monkeypatch.delitem(sys.modules, module.__name__)
        assert importlib.import_module(module.__name__) is not module


def test_workers_are_connected_with_gloo_if_one_of_them_lacks_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = []
    monkeypatch.setattr(TorchConfig().backend_cls, "on_start", lambda *given: chosen.append(given[2].backend))
    for resources, lacking in (({"GPU": 1}, [False, True]), ({"GPU": 1}, [False, False]), ({"CPU": 1}, [True, True])):
        workers = SimpleNamespace(
            get_resources_per_worker=lambda resources=resources: resources,
            execute=lambda _, lacking=lacking: lacking,
            execute_single=lambda rank, _: rank,
        )
        TolerantBackend().on_start(workers, torch_config(30))
    # Without a value, Ray chooses NCCL for workers with GPUs.
    assert chosen == ["gloo", None, None]


def test_backend_tolerates_workers_killed_for_memory_or_falls_back(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise OutOfMemoryError("killed")

    assert torch_config(30).backend_cls is TolerantBackend and torch_config(30).timeout_s == 30
    assert not caplog.records
    monkeypatch.setattr(TorchConfig().backend_cls, "on_shutdown", fail)
    # The backend does not change what the user has set.
    monkeypatch.setenv("TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S", "7")
    TolerantBackend().on_shutdown(None, None)
    assert os.environ["TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S"] == "7"
    monkeypatch.setattr(TorchConfig, "backend_cls", None)
    assert type(ray_train.torch_config(30)) is TorchConfig
    assert len(caplog.records) == 1
