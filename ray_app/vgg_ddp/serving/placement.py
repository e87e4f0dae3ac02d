"""What each replica gets of a Ray cluster: CPUs, a GPU, and its environment."""

import os
from typing import Any

import ray

from vgg_ddp.driver.cluster import alive_nodes, largest_share
from vgg_ddp.flags import UsageError
from vgg_ddp.serving.config import ServeConfig


def actor_options(config: ServeConfig, own_cluster: bool) -> dict[str, Any]:
    """The options of Ray for the actor of each replica: its CPUs, its GPU, and its environment.

    Raises:
        UsageError: if the cluster does not have enough.
    """
    nodes = alive_nodes()
    use_gpu = _choose_gpus(config, sum(int(node.get("GPU", 0)) for node in nodes), own_cluster)
    cpus = largest_share(nodes, config.replicas, use_gpu)
    if not cpus:
        raise UsageError(f"--replicas {config.replicas}: Ray sees no CPUs for them (ray status).")
    if own_cluster:
        # Nothing else runs there: all cores classify.
        cpus = max(cpus, nodes[0]["CPU"] // config.replicas)
    return {"num_cpus": cpus, "num_gpus": int(use_gpu), "runtime_env": _runtime_environment()}


def _runtime_environment() -> dict[str, Any]:
    """Ray's runtime environment of this job, with a variable that keeps idle OpenMP threads off the cores.

    By default, they spin, which slows down everything else that a request needs.
    """
    environment = dict(ray.get_runtime_context().runtime_env)
    waiting = {"OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "passive")}
    return {**environment, "env_vars": environment.get("env_vars", {}) | waiting}


def _choose_gpus(config: ServeConfig, gpus: int, own_cluster: bool) -> bool:
    if config.device == "cpu":
        return False
    if gpus < config.replicas:
        problem = f"Ray sees {gpus} GPU{'s'[: gpus != 1]} for {config.replicas} replica{'s'[: config.replicas != 1]}"
        if config.device == "gpu":
            raise UsageError(f"--device gpu: {problem}; use fewer --replicas, or --device cpu.")
        if gpus:
            print(f"NOTE: {problem}. Serving on CPUs.", flush=True)
        return False
    if not own_cluster:
        # The replicas of another cluster check for themselves.
        return True
    from vgg_ddp.machine.gpus import can_use_gpus

    return can_use_gpus(config.device, config.replicas, "Serving")
