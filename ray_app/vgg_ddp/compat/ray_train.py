"""Two changes to Ray Train for which Ray has no public API. Tested with Ray 2.60.0."""

import dataclasses
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from ray.exceptions import RayError
from ray.train.torch import TorchConfig, TorchTrainer

from vgg_ddp.compat.fallback import log_fallback
from vgg_ddp.compat.placement_cleaner import PlacementGroupCleaner
from vgg_ddp.machine.gpus import VISIBLE, find_gpus

logger = logging.getLogger(__name__)

DATASETS = ("ray.train.v2._internal.callbacks.datasets", "DatasetsCallback")
CLEANER = ("ray.train.v2._internal.callbacks.placement_group_callback", "PlacementGroupCleanerCallback")


class LeanTrainer(TorchTrainer):  # type: ignore[misc]
    """Ray's trainer without actors that this program does not use. If Ray's internals moved, they start as usual.

    One actor manages the trainer's datasets; this program passes none. Starting it takes seconds of CPU time, and
    running it 1% of a CPU. Another actor cleans up after a dead controller. It is omitted with `own_cluster`, because
    that cluster ends with the run, and otherwise replaced: see `PlacementGroupCleaner`.

    No longer needed once Ray starts the first actor only for trainers with datasets, for which it has no setting, and
    shares the second one among runs: https://github.com/ray-project/ray/pull/65447.
    """

    def __init__(self, *arguments: Any, own_cluster: bool, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._own_cluster = own_cluster
        self._unused = tuple(filter(None, map(_find, (DATASETS, CLEANER))))
        if not hasattr(TorchTrainer, "_create_default_callbacks"):
            _log_slow_start("TorchTrainer._create_default_callbacks")

    def _create_default_callbacks(self, *arguments: Any, **options: Any) -> list[Any]:
        callbacks: list[Any] = super()._create_default_callbacks(*arguments, **options)
        callbacks = [callback for callback in callbacks if not isinstance(callback, self._unused)]
        if not self._own_cluster and _find(CLEANER):
            callbacks.append(CleanerCallback())
        return callbacks


def _find(callback: tuple[str, str]) -> type | None:
    module, name = callback
    try:
        found: type = getattr(import_module(module), name)
    except (ImportError, AttributeError):
        _log_slow_start(f"{module}.{name}")
        return None
    return found


def _log_slow_start(api: str) -> None:
    log_fallback(api, "runs start some seconds later")


class CleanerCallback(_find(CLEANER) or object):  # type: ignore[misc]
    """Ray's callback, which runs in the controller; it starts the actor of this program instead of Ray's."""

    def after_controller_start(self, *arguments: Any, **options: Any) -> None:
        module = import_module(CLEANER[0])
        if not hasattr(module, PlacementGroupCleaner.__name__):
            log_fallback(f"{CLEANER[0]}.{PlacementGroupCleaner.__name__}", "Ray's own actor cleans up after a run")
        setattr(module, PlacementGroupCleaner.__name__, PlacementGroupCleaner)
        super().after_controller_start(*arguments, **options)


def torch_config(timeout_seconds: int) -> TorchConfig:
    """Ray's settings for the process group, with `TolerantBackend`."""
    if not isinstance(getattr(TorchConfig, "backend_cls", None), property):
        log_fallback("ray.train.torch.TorchConfig.backend_cls", "a worker killed for memory may end the run")
        return TorchConfig(timeout_s=timeout_seconds)
    return TolerantTorchConfig(timeout_s=timeout_seconds)


class TolerantBackend(getattr(TorchConfig(), "backend_cls", object)):  # type: ignore[misc]
    """Ray's process group, which tolerates workers that have no usable GPU, or that were killed for their memory use.

    torch's store listens only on the address that the workers connect to.

    Ray connects workers that have GPUs with NCCL, which raises an error if CUDA cannot be used; gloo lets the workers
    agree on what to do.

    Since https://github.com/ray-project/ray/pull/63143, Ray handles dead workers at the end, but not the
    OutOfMemoryError of such a worker: it fails the controller, and the run ends. No longer needed once Ray handles that
    error.
    """

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        if worker_group.get_resources_per_worker().get("GPU") and any(worker_group.execute(_lacks_gpu)):
            backend_config = dataclasses.replace(backend_config, backend="gloo")
        # Only rank 0 hosts the store.
        worker_group.execute_single(0, _bind_store)
        super().on_start(worker_group, backend_config)

    def on_shutdown(self, *arguments: Any, **options: Any) -> None:
        # How long a restart waits for a frozen worker; 30 s by default. Ray does not pass this variable from the driver
        # to the controller.
        os.environ.setdefault("TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S", "5")
        try:
            super().on_shutdown(*arguments, **options)
        except RayError as error:
            logger.debug("The process group could not be shut down: %s", error)


@contextmanager
def hidden_gpus() -> Iterator[None]:
    """Make torch report no GPU in this process, within this context.

    Ray Train's local mode has no setting for the backend of the process group: it is NCCL if torch reports a GPU. No
    longer needed once it has one.
    """
    visible, is_available = os.environ.get(VISIBLE), torch.cuda.is_available
    os.environ[VISIBLE] = ""
    try:
        if is_available():
            # CUDA has read the variable already.
            torch.cuda.is_available = lambda: False
        yield
    finally:
        torch.cuda.is_available = is_available
        if visible is None:
            del os.environ[VISIBLE]
        else:
            os.environ[VISIBLE] = visible


def _lacks_gpu() -> bool:
    return find_gpus().problem is not None


def _bind_store() -> None:
    # Imported in the workers only.
    from vgg_ddp.compat.torch_store import listen_on_master_address_only

    listen_on_master_address_only()


class TolerantTorchConfig(TorchConfig):  # type: ignore[misc]
    """Ray's settings for the process group, with `TolerantBackend`."""

    @property
    def backend_cls(self) -> type[TolerantBackend]:
        return TolerantBackend
