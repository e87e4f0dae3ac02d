"""The Ray cluster of a run: join or start one, and check that the workers fit."""

import logging
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import yaml
from ray.exceptions import RayError

from vgg_ddp.compat.ray_job import job_config
from vgg_ddp.compat.ray_variables import LOOPBACK_ONLY
from vgg_ddp.config import TrainConfig
from vgg_ddp.driver.ray_environment import AUTO, INITIALIZED, LOCAL, describe
from vgg_ddp.flags import UsageError
from vgg_ddp.machine import malloc
from vgg_ddp.machine.code import PACKAGE
from vgg_ddp.machine.limits import usable_cores
from vgg_ddp.run.notes import reason

logger = logging.getLogger(__name__)

Resources = dict[str, float]
CONNECT_SECONDS = 5.0
LOOPBACK_ADDRESSES = ("127.0.0.1", "::1", "localhost")
# Ray's resource resolution: 1/10,000 of a CPU.
SHARES = 10_000
# Ray Train itself sets a deprecated option of Ray Data; this hides the warning.
QUIET = {"PYTHONWARNINGS": "ignore:`ExecutionOptions.exclude_resources`"}
# Where `ray up` puts the cluster file on a head node; it lists the resources of each node type.
CLUSTER_FILE = "~/ray_bootstrap_config.yaml"


@dataclass(frozen=True)
class Placement:
    """The number of workers, the resources of each, and whether they include a GPU."""

    num_workers: int
    resources_per_worker: dict[str, float]
    use_gpu: bool


def connect(address: str, verbose: bool = False, shows_workers: bool = True) -> str | None:
    """Join the Ray cluster at an address from `ray_environment.prepare`, or start one on this machine.

    Args:
        address: the address.
        verbose: whether to show Ray's log of this process.
        shows_workers: whether to show what all processes of the cluster print that this one starts.

    Returns:
        The address of the cluster's dashboard, if it has one and this call joined the cluster.

    Raises:
        UsageError: if the address does not answer, or the workers cannot import this package.
    """
    if address == INITIALIZED:
        _require_package()
        return None
    options: dict[str, Any] = {
        "logging_level": logging.INFO if verbose else logging.ERROR,
        "log_to_driver": shows_workers,
        "job_config": job_config(),
    }
    if address == LOCAL:
        connection = ray.init(address=LOCAL, num_cpus=usable_cores(), **options)
        _warn_if_reachable(connection.address_info["node_ip_address"])
        return _dashboard_url(connection)
    if address != AUTO:
        _require_answer(address)
    try:
        runtime_env = {"py_modules": [str(PACKAGE)], "env_vars": malloc.ENVIRONMENT | QUIET}
        connection = ray.init(address=address, runtime_env=runtime_env, **options)
        return _dashboard_url(connection)
    except (ConnectionError, ValueError, RuntimeError, RayError) as error:
        raise UsageError(f"{describe(address)}: no Ray cluster could be joined ({reason(error)}).") from error


def _dashboard_url(connection: Any) -> str | None:
    return connection.dashboard_url or None


def _require_package() -> None:
    """Check that the workers of the initialized cluster can import this package.

    Raises:
        UsageError: if they cannot.
    """
    context = ray.get_runtime_context()
    if context.get_actor_id() or context.get_task_id():
        # This process is a worker itself.
        return

    # Ray pickles a nested function by value.
    def can_import() -> bool:
        from importlib.util import find_spec

        return find_spec("vgg_ddp") is not None

    if not ray.get(ray.remote(num_cpus=0)(can_import).remote()):
        raise UsageError(
            "Ray is initialized, but its workers cannot import vgg_ddp: install it (pip install -e .), or ship it with "
            'ray.init(runtime_env={"py_modules": [vgg_ddp]}).'
        )


def _warn_if_reachable(address: str) -> None:
    (name,) = LOOPBACK_ONLY
    if os.environ.get(name) == LOOPBACK_ONLY[name] and address not in LOOPBACK_ADDRESSES:
        logger.warning("Ray listens on %s, not on loopback only: keep its ports behind a firewall.", address)


def _require_answer(address: str) -> None:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        or_unset = ", or unset the variable" if describe(address).startswith("RAY_ADDRESS") else ""
        raise UsageError(
            f"{describe(address)}: nothing answers there ({error}): check that the Ray head node is running and that "
            f"this machine can reach it{or_unset}."
        ) from error


def largest_cluster(cluster_file: Path) -> list[Resources]:
    """The maximum set of nodes that the autoscaler may start, those with the most GPUs; empty without a cluster file.

    Ray's API lists only the nodes that exist now.
    """
    if not cluster_file.exists():
        return []
    cluster = yaml.safe_load(cluster_file.read_text())
    node_types = cluster["available_node_types"].values()
    nodes = [kind["resources"] for kind in node_types for _ in range(kind.get("max_workers", 0))]
    # The cluster's own limit may be lower than the sum over the node types.
    return sorted(nodes, key=lambda node: -node.get("GPU", 0))[: cluster.get("max_workers")]


def alive_nodes() -> list[Resources]:
    """The resources of the nodes that the cluster has now."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def possible_nodes(own_cluster: bool) -> list[Resources]:
    """The resources of the nodes that an autoscaler may bring the cluster to, from its head node's file."""
    return [] if own_cluster else largest_cluster(Path(os.path.expanduser(CLUSTER_FILE)))


def largest_share(nodes: Sequence[Resources], workers: int, use_gpu: bool, part_of_cpus: float = 1.0) -> float:
    """The largest share of a CPU, up to one, that every worker can have, on the node of its GPU.

    Rounded down to Ray's four decimals, so that the shares on a node do not exceed its CPUs.
    """
    # CPUs of each node, and how many workers may run on it.
    capacities = [
        (node.get("CPU", 0.0) * part_of_cpus, int(node.get("GPU", 0.0)) if use_gpu else workers) for node in nodes
    ]
    shares = {int(cpus / count * SHARES) for cpus, most in capacities for count in range(1, min(workers, most) + 1)}
    for share in sorted({min(share, SHARES) for share in shares}, reverse=True):
        if share and sum(min(int(cpus * SHARES) // share, most) for cpus, most in capacities) >= workers:
            return share / SHARES
    return 0.0


def part_of_cpus_for_workers(config: TrainConfig) -> float:
    """The part of the CPUs that workers may request: while images are streamed, the other half decodes them."""
    return 0.5 if config.ingest == "stream" else 1.0


def cpus_of_worker(config: TrainConfig, nodes: Sequence[Resources], use_gpu: bool) -> float:
    """CPUs to request per worker, up to one, so that all workers fit; in an elastic run, the minimum of workers."""
    part_of_cpus = part_of_cpus_for_workers(config)
    share = largest_share(nodes, config.min_workers or config.num_workers or 1, use_gpu, part_of_cpus)
    return min(share, part_of_cpus) if config.min_workers else share


def place_workers(config: TrainConfig, own_cluster: bool = False) -> Placement:
    """Choose a GPU per worker if --device gpu requires it or auto allows it; otherwise CPUs or fractions of them.

    Without --num-workers, there is one worker per GPU. Nodes that an autoscaler may still add to an existing cluster
    count, because Ray Train waits for them.

    Raises:
        UsageError: if --device gpu needs more GPUs than the cluster has, if there are no CPUs, or if the other settings
            do not fit the number of workers.
    """
    present, possible = ray.cluster_resources(), possible_nodes(own_cluster)
    cpus, gpus = (max(present.get(kind, 0.0), _total(possible, kind)) for kind in ("CPU", "GPU"))
    use_gpu = _choose_gpus(config, int(gpus), own_cluster)
    if not use_gpu and not cpus:
        raise UsageError(
            f"--device {config.device}: Ray sees no CPUs to train on; wait until the cluster's machines are up "
            "(ray status)."
        )
    num_workers = int(gpus) if use_gpu and config.num_workers is None else config.workers_on_cpus
    config = config.with_workers(num_workers)
    kind = "GPU" if use_gpu else "CPU"
    nodes = max(alive_nodes(), possible, key=lambda nodes: _total(nodes, kind))
    per_worker = {"CPU": cpus_of_worker(config, nodes, use_gpu)} | ({"GPU": 1.0} if use_gpu else {})
    return Placement(num_workers, per_worker, use_gpu)


def _choose_gpus(config: TrainConfig, gpus: int, own_cluster: bool) -> bool:
    """Whether to train on the cluster's GPUs."""
    if config.device == "cpu":
        return False
    # An elastic run can start with its minimum of workers.
    workers = config.min_workers or config.num_workers or max(1, gpus)
    workers_flag = "--min-workers" if config.min_workers else "--num-workers"
    if config.device == "gpu" and gpus < workers:
        count = f" {workers_flag} {workers}" if config.min_workers or config.num_workers else ""
        fewer = "use at most that many workers" if gpus else "wait until the cluster's machines are up (ray status)"
        raise UsageError(f"--device gpu{count}: Ray sees {gpus} GPU{'s'[: gpus != 1]}; {fewer}, or --device cpu.")
    if gpus < workers:
        if gpus:
            print(f"NOTE: {gpus} GPU(s) for {workers} workers: training on CPUs. To use GPUs: {workers_flag} {gpus}.")
        return False
    # The workers of an existing cluster check for themselves.
    return not own_cluster or _can_use_gpus(config.device, workers)


def _can_use_gpus(device: str, workers: int) -> bool:
    """Whether torch can use this machine's GPUs."""
    # Importing torch takes seconds: not before Ray has started, nor without GPUs.
    from vgg_ddp.machine.gpus import can_use_gpus

    return can_use_gpus(device, workers, "Training")


def _total(nodes: Sequence[Resources], kind: str) -> float:
    return sum(node.get(kind, 0.0) for node in nodes)
