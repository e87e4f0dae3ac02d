"""Wait for the moment at which the faults of a round come."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from benchmarks.faults.cluster.kinds import Plan
from benchmarks.faults.cluster.s3_proxy import Fault
from benchmarks.faults.cluster.scene import Scene, checkpoints, epochs_done, newest_step, wait_while_running
from benchmarks.faults.cluster.stage import Reference
from vgg_ddp.run.storage import STATE_FILE

# An upload counts as going on for this time after its request.
SECONDS_TO_NOTICE = 0.05


@contextmanager
def saves_seen(scene: Scene) -> Iterator[Callable[[], bool]]:
    """A function that tells whether a checkpoint is being written; on S3, whether its upload has just begun."""
    if scene.proxy is None:
        yield lambda: bool(checkpoints(scene.run, is_complete=False))
        return
    uploads: list[float] = []

    def notice(method: str, path: str) -> Fault | None:
        if method in ("PUT", "POST") and STATE_FILE in path:
            uploads.append(time.monotonic())
        return None

    scene.proxy.choosers.append(notice)
    try:
        yield lambda: bool(uploads) and time.monotonic() - uploads[-1] < SECONDS_TO_NOTICE
    finally:
        scene.proxy.choosers.remove(notice)


def wait_for_phase(scene: Scene, plan: Plan, reference: Reference, saves_now: Callable[[], bool]) -> bool:
    """Wait for the moment at which the first fault comes; whether it came before the command's end and the deadline."""
    if plan.phase == "start":
        return sleep(scene, plan.moment * reference.startup_seconds)
    if plan.phase == "training":
        step = 1 + round(plan.moment * reference.total_steps * 2 / 3)
        return wait_while_running(scene, lambda: newest_step(scene.run) >= step)
    if plan.phase == "evaluation":
        into = reference.epoch_seconds - (1 - plan.moment) * reference.evaluation_seconds
        return _wait_after_epoch(scene, 1, into)
    if plan.phase == "save":
        return wait_while_running(scene, lambda: newest_step(scene.run) > 0) and wait_while_running(
            scene, saves_now, interval_seconds=0.005
        )
    return _wait_after_epoch(scene, reference.epochs, plan.moment * reference.end_seconds)


def _wait_after_epoch(scene: Scene, number: int, seconds: float) -> bool:
    if not wait_while_running(scene, lambda: epochs_done(scene.run)[0] >= number):
        return False
    return sleep(scene, epochs_done(scene.run)[1] + seconds - time.time())


def sleep(scene: Scene, seconds: float) -> bool:
    """Whether the command still runs after this time, which the deadline limits."""
    until = time.monotonic() + seconds
    return wait_while_running(scene, lambda: time.monotonic() >= until)
