"""How many trials the cluster can run at the same time."""

from collections.abc import Sequence

from vgg_ddp.driver.cluster import (
    SHARES,
    Placement,
    Resources,
    alive_nodes,
    part_of_cpus_for_workers,
    possible_nodes,
)
from vgg_ddp.flags import UsageError
from vgg_ddp.sweep.config import SweepConfig


def trials_at_once(config: SweepConfig, placement: Placement, own_cluster: bool) -> int:
    """How many trials may run at the same time; nodes that an autoscaler may still add count.

    If more were started, each could hold what another waits for.

    Raises:
        UsageError: if --max-concurrent is higher.
    """
    part_of_cpus = part_of_cpus_for_workers(config)
    fitting = max(
        count_workers(nodes, placement.resources_per_worker, part_of_cpus)
        for nodes in (alive_nodes(), possible_nodes(own_cluster))
    )
    # One trial always fits: `place_workers` has checked that.
    most = max(1, fitting // placement.num_workers)
    if config.max_concurrent and config.max_concurrent > most:
        raise UsageError(
            f"--max-concurrent {config.max_concurrent}: the cluster has room for {most} trial(s) of "
            f"{placement.num_workers} worker(s) at the same time."
        )
    return config.max_concurrent or most


def count_workers(nodes: Sequence[Resources], per_worker: Resources, part_of_cpus: float = 1.0) -> int:
    """How many workers fit on these nodes."""
    total = 0
    for node in nodes:
        available = node | {"CPU": node.get("CPU", 0.0) * part_of_cpus}
        total += min(
            int(available.get(kind, 0.0) * SHARES) // round(need * SHARES) for kind, need in per_worker.items() if need
        )
    return total
