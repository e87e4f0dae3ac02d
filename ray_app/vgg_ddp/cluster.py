"""The Ray cluster of a run: join one or start one, and check that it can hold the workers."""

import logging
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from vgg_ddp.config import TrainConfig
from vgg_ddp.flags import UsageError
from vgg_ddp.storage import Folder

PACKAGE = Path(__file__).resolve().parent
CONNECT_SECONDS = 5.0
LOOPBACK = "127.0.0.1"

RAY_ENVIRONMENT = {
    # A report waits for the controller's next poll, which comes every 2 s by default.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",
    # A node that is about to go leaves little time for a checkpoint: by default 5 s pass before the workers hear of it.
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
}
LOCAL_ENVIRONMENT = {
    # One machine has no node that could go before the others: the watcher for that would only take time to start.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # A busy laptop can take longer than Ray's 60 s to import torch in every worker, and would then start over for ever.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",
}


@dataclass(frozen=True)
class Placement:
    """Where the workers run: the resources of each, and whether they have GPUs."""

    resources_per_worker: dict[str, float]
    use_gpu: bool


def connect(address: str | None) -> Any:
    """Join the Ray cluster at an address, or start one on this machine that listens on loopback only.

    Raises:
        UsageError: if the address does not answer.
    """
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    os.environ.update({name: os.environ.get(name, value) for name, value in RAY_ENVIRONMENT.items()})
    if address == "local":
        os.environ.update({name: os.environ.get(name, value) for name, value in LOCAL_ENVIRONMENT.items()})
        # Ray's processes inherit the path: cheaper than shipping the package to the machine it is on.
        _prepend_to_pythonpath(str(PACKAGE.parent))
        return ray.init(address="local", logging_level=logging.ERROR, _node_ip_address=LOOPBACK)
    if address != "auto":
        _require_answer(address)
    try:
        return ray.init(address=address, logging_level=logging.ERROR, runtime_env={"py_modules": [str(PACKAGE)]})
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f"--address {address}: no Ray cluster could be joined ({reason}).") from error


def _prepend_to_pythonpath(folder: str) -> None:
    rest = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = f"{folder}{os.pathsep}{rest}" if rest else folder


def _require_answer(address: str) -> None:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "://" in address:
        raise UsageError(f"--address {address}: expected HOST:PORT of a Ray head node (its port is 6379), or auto.")
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"--address {address}: nothing answers there ({error}): check that the Ray head node runs and that this "
            "machine can reach it."
        ) from error


def place_workers(config: TrainConfig) -> Placement:
    """Choose GPUs where there is one for every worker (or they are asked for), else CPUs, fractions of them if need be.

    Raises:
        UsageError: if there are fewer GPUs than --device gpu needs.
    """
    resources = ray.cluster_resources()
    cpus, gpus = resources.get("CPU", 0.0), int(resources.get("GPU", 0))
    # An elastic run starts with what is there.
    workers = config.min_workers or config.num_workers
    if config.device == "gpu" and gpus < workers:
        raise UsageError(
            f"--device gpu --num-workers {workers}: Ray sees {gpus} GPU{'s'[: gpus != 1]}; ask for at most as many "
            "workers, or use --device cpu."
        )
    use_gpu = config.device != "cpu" and gpus >= workers
    if config.device == "auto" and gpus and not use_gpu:
        print(f"NOTE: {gpus} GPU(s) for {workers} workers: training on CPUs. Use --num-workers {gpus} for the GPUs.")
    # Ray keeps four decimals: round down, so that the parts fit into the whole.
    cpu_share = 1.0 if cpus >= workers or config.min_workers else int(cpus / workers * 10_000) / 10_000
    per_worker = {"CPU": cpu_share} | ({"GPU": 1.0} if use_gpu else {})
    return Placement(per_worker, use_gpu)


def require_shared(folder: Folder) -> None:
    """Check that every machine of the cluster sees the run folder.

    Raises:
        UsageError: naming the machines that do not.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) == 1 or not folder.is_local:
        return

    @ray.remote(num_cpus=0)  # type: ignore[untyped-decorator]
    def sees(path: str) -> bool:
        return os.path.isdir(path)

    def ask(node: dict[str, Any]) -> "ray.ObjectRef[bool]":
        strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        return sees.options(scheduling_strategy=strategy).remote(folder.path)

    answers = ray.get([ask(node) for node in nodes])
    blind = [node["NodeManagerAddress"] for node, sees_it in zip(nodes, answers, strict=True) if not sees_it]
    if blind:
        raise UsageError(
            f"--storage-path {folder.path} is not on {', '.join(blind)}: several machines need a folder that all of "
            "them share (NFS), or a URI such as s3://bucket/runs."
        )
