"""What a fault acts on: the cluster, the command, the run folder."""

import random
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

from benchmarks.faults.cluster.ray_cluster import HostTraining, RayCluster
from benchmarks.faults.cluster.s3_proxy import FaultProxy
from vgg_ddp.run.files import METRICS_FILE, STARTUP_FILE, read_metrics, read_progress
from vgg_ddp.run.storage import MANIFEST_FILE, Folder, is_checkpoint


class NotInjected(Exception):  # noqa: N818 - the round is neither good nor bad
    """What a fault should hit was not there."""


@dataclass
class Scene:
    """A run that is to be disturbed, as one fault sees it.

    Attributes:
        run: the run folder, as this machine sees it.
        proxy: in front of S3, for runs that are stored there.
        deadline: until when to wait for something, by the monotonic clock.
        notes: what the faults chose.
        rng: for the choices of this fault.
        undo: ends this fault.
    """

    cluster: RayCluster
    training: HostTraining
    run: Folder
    proxy: FaultProxy | None
    deadline: float
    notes: list[str] = field(default_factory=list)
    rng: random.Random = field(default_factory=random.Random)
    undo: ExitStack = field(default_factory=ExitStack)


def checkpoints(run: Folder, is_complete: bool = True) -> list[str]:
    """The names of the complete or of the incomplete checkpoints, in order."""
    names = filter(is_checkpoint, run.names())
    return [name for name in names if (run / name).exists(MANIFEST_FILE) == is_complete]


def complete_steps(run: Folder) -> list[int]:
    """Steps of the complete checkpoints, in order."""
    return [int(name.split("_")[1]) for name in checkpoints(run)]


def newest_step(run: Folder) -> int:
    """Step of the newest complete checkpoint, 0 if there is none."""
    return max(complete_steps(run), default=0)


def reached_step(run: Folder) -> int:
    """The step that a run has reached, as far as it has written it."""
    return max(newest_step(run), int(read_progress(run).get("step", 0)))


def first_step_at(run: Folder) -> float:
    """When the newest workers finished their first step, by the clock of the storage, in seconds since 1970."""
    return run.changed_ns(STARTUP_FILE) / 1e9 if run.exists(STARTUP_FILE) else 0.0


def epochs_done(run: Folder) -> tuple[int, float]:
    """The number of finished epochs, and when the last one was recorded, in seconds since 1970."""
    return len(read_metrics(run)), run.changed_ns(METRICS_FILE) / 1e9 if run.exists(METRICS_FILE) else 0.0


def wait_while_running(scene: Scene, is_true: Callable[[], object], interval_seconds: float = 0.05) -> bool:
    """Whether something becomes true before the command ends, and before the deadline."""
    while scene.training.is_running and time.monotonic() < scene.deadline:
        if is_true():
            return True
        time.sleep(interval_seconds)
    return False
