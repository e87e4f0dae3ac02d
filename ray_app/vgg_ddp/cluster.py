"""The Ray cluster of a run: join one or start one, and check that it can hold the workers."""

import logging
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import yaml

from vgg_ddp import allocation
from vgg_ddp.config import TrainConfig
from vgg_ddp.flags import UsageError
from vgg_ddp.limits import usable_cores
from vgg_ddp.ray_environment import LOCAL, PACKAGE

Resources = dict[str, float]
CONNECT_SECONDS = 5.0
# Parts of a CPU that Ray can tell apart.
SHARES = 10_000
# Ray Train itself sets a deprecated option of Ray Data's; the start of what Python would tell the user about that.
QUIET = {"PYTHONWARNINGS": "ignore:`ExecutionOptions.exclude_resources`"}
# What `ray up` leaves on a head node: the cluster file, with the resources of each type of node.
CLUSTER_FILE = Path("~/ray_bootstrap_config.yaml")


@dataclass(frozen=True)
class Placement:
    """Where the workers run: the resources of each, and whether they have GPUs."""

    resources_per_worker: dict[str, float]
    use_gpu: bool


def connect(address: str, verbose: bool = False) -> Any:
    """Join the Ray cluster at an address, or start one on this machine; `ray_environment.prepare` gave the address.

    Raises:
        UsageError: if the address does not answer.
    """
    level = logging.INFO if verbose else logging.ERROR
    if address == LOCAL:
        return ray.init(address=LOCAL, num_cpus=usable_cores(), logging_level=level)
    if address != "auto":
        _require_answer(address)
    try:
        runtime_env = {"py_modules": [str(PACKAGE)], "env_vars": allocation.ENVIRONMENT | QUIET}
        return ray.init(address=address, logging_level=level, runtime_env=runtime_env)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f"--address {address}: no Ray cluster could be joined ({reason}).") from error


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


def start_coordinator() -> None:
    """Start the actor that Ray Train's controller asks for resources.

    The controller would start it, too, and do nothing else until it answers; now both start at the same time, which
    saves 3 s on two cores. Ray has no public call for it.
    """
    from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
        get_or_create_autoscaling_coordinator,
    )

    get_or_create_autoscaling_coordinator()


def largest_cluster(cluster_file: Path) -> list[Resources]:
    """The nodes that the autoscaler may bring up at most; none where there is no cluster file.

    Ray itself does not tell: its autoscaler knows them, and the driver can only ask for what is there.
    """
    if not cluster_file.exists():
        return []
    node_types = yaml.safe_load(cluster_file.read_text())["available_node_types"].values()
    return [kind["resources"] for kind in node_types for _ in range(kind.get("max_workers", 0))]


def largest_share(nodes: Sequence[Resources], workers: int, use_gpu: bool, part_of_cpus: float = 1.0) -> float:
    """CPUs that each worker can have at most, up to one: a worker's CPUs, and its GPU, lie on one node.

    Ray keeps four decimals: rounded down to these, so that the shares of a node fit into it.
    """
    cpus_and_most = [
        (node.get("CPU", 0.0) * part_of_cpus, int(node.get("GPU", 0.0)) if use_gpu else workers) for node in nodes
    ]
    shares = {int(cpus / count * SHARES) for cpus, most in cpus_and_most for count in range(1, min(workers, most) + 1)}
    for share in sorted({min(share, SHARES) for share in shares}, reverse=True):
        if share and sum(min(int(cpus * SHARES) // share, most) for cpus, most in cpus_and_most) >= workers:
            return share / SHARES
    return 0.0


def cpus_of_worker(config: TrainConfig, nodes: Sequence[Resources], use_gpu: bool) -> float:
    """CPUs that each worker asks for, up to one, so that all of them fit; of an elastic run, the fewest of them."""
    # What decodes images while training goes on needs CPUs, too.
    most = 0.5 if config.ingest == "stream" else 1.0
    share = largest_share(nodes, config.min_workers or config.num_workers, use_gpu, most)
    return min(share, most) if config.min_workers else share


def place_workers(config: TrainConfig, own_cluster: bool = False) -> Placement:
    """Choose GPUs where there is one for every worker (or they are asked for), else CPUs, fractions of them if need be.

    What an autoscaler may still bring to a cluster that was joined counts like what is there: Ray Train waits for it.

    Raises:
        UsageError: if there are fewer GPUs than --device gpu needs, or no CPUs.
    """
    present, possible = ray.cluster_resources(), [] if own_cluster else largest_cluster(CLUSTER_FILE.expanduser())
    cpus, gpus = (max(present.get(kind, 0.0), _total(possible, kind)) for kind in ("CPU", "GPU"))
    gpus = int(gpus)
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
    if not use_gpu and not cpus:
        raise UsageError(
            f"--device {config.device}: Ray sees no CPUs to train on; wait until the cluster's machines are up "
            "(ray status)."
        )
    is_there = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    kind = "GPU" if use_gpu else "CPU"
    nodes = max(is_there, possible, key=lambda nodes: _total(nodes, kind))
    per_worker = {"CPU": cpus_of_worker(config, nodes, use_gpu)} | ({"GPU": 1.0} if use_gpu else {})
    return Placement(per_worker, use_gpu)


def _total(nodes: Sequence[Resources], kind: str) -> float:
    return sum(node.get(kind, 0.0) for node in nodes)
