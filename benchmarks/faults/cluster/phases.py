"""Wait for the moment at which the faults of a round come."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from benchmarks.faults.cluster.kinds import Plan
from benchmarks.faults.cluster.s3_proxy import Fault
from benchmarks.faults.cluster.scene import (
    STATE_FILE,
    Scene,
    checkpoints,
    epochs_done,
    newest_step,
    wait_while_running,
)
from benchmarks.faults.cluster.stage import Reference

# An upload counts as going on for this time after its request.
SECONDS_TO_NOTICE = 0.05


@contextmanager
def saves_seen(scene: Scene) -> Iterator[Callable[[], bool]]:
    """A function that tells whether a checkpoint is being written; on S3, whether its upload has just begun."""
    if scene.proxy is None:
        yield lambda: bool(checkpoints(scene.run, is_complete=False))
        return
    uploads: list[float] = []
    proxy, before = scene.proxy, scene.proxy.choose

    def choose(method: str, path: str) -> Fault | None:
        if method in ("PUT", "POST") and STATE_FILE in path:
            uploads.append(time.monotonic())
        return before(method, path)

    proxy.choose = choose
    try:
        yield lambda: bool(uploads) and time.monotonic() - uploads[-1] < SECONDS_TO_NOTICE
    finally:
        proxy.choose = before


def wait_for_phase(scene: Scene, plan: Plan, reference: Reference, saves_now: Callable[[], bool]) -> None:
    """Wait for the moment at which the first fault comes, or for the command to end."""
    if plan.phase == "start":
        sleep(scene, plan.moment * reference.startup_seconds)
    elif plan.phase == "training":
        step = 1 + round(plan.moment * reference.total_steps * 2 / 3)
        wait_while_running(scene, lambda: newest_step(scene.run) >= step)
    elif plan.phase == "evaluation":
        wait_while_running(scene, lambda: epochs_done(scene.run)[0] >= 1)
        into = reference.epoch_seconds - (1 - plan.moment) * reference.evaluation_seconds
        sleep(scene, epochs_done(scene.run)[1] + into - time.time())
    elif plan.phase == "save":
        wait_while_running(scene, lambda: newest_step(scene.run) > 0)
        wait_while_running(scene, saves_now, interval_seconds=0.005)
    else:
        wait_while_running(scene, lambda: newest_step(scene.run) >= reference.total_steps)
        sleep(scene, plan.moment * 2)


def sleep(scene: Scene, seconds: float) -> None:
    until = time.monotonic() + seconds
    wait_while_running(scene, lambda: time.monotonic() >= until)
