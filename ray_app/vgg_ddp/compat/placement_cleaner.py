"""The actor that frees the CPUs or GPUs of a run whose controller died. Tested with Ray 2.60.0."""

import asyncio

import ray
import ray._private.state
from ray.util.placement_group import PlacementGroup, remove_placement_group


class PlacementGroupCleaner:
    """Replaces Ray's actor of the same name; the controller starts it, and stops it when the run ends.

    Ray's actor asks the dashboard whether the controller is alive. If there is no dashboard, or another Ray cluster
    runs on the same machine, it fails, and the CPUs or GPUs of a run that was killed, such as a trial that Ray Tune
    stopped early, stay reserved until the driver ends. Its process also imports torch: up to 600 MB.

    No longer needed once Ray's actor asks the cluster that it runs on.
    """

    def __init__(self, controller_actor_id: str, check_interval_s: float, **_: object) -> None:
        self._controller = controller_actor_id
        self._seconds_between_checks = check_interval_s
        self._placement_group: PlacementGroup | None = None
        self._stopped = asyncio.Event()

    async def register_placement_group(self, placement_group: PlacementGroup) -> None:
        """Remember the placement group of the current workers."""
        self._placement_group = placement_group

    async def start_monitoring(self) -> None:
        """Wait until the run ends. If the controller died, remove the placement group."""
        while not self._stopped.is_set():
            if ray._private.state.actors(self._controller).get("State") == "DEAD":
                if self._placement_group:
                    remove_placement_group(self._placement_group)
                ray.actor.exit_actor()
            try:
                await asyncio.wait_for(self._stopped.wait(), self._seconds_between_checks)
            except TimeoutError:
                continue

    async def stop(self) -> None:
        """End this actor."""
        self._stopped.set()
        ray.actor.exit_actor()
