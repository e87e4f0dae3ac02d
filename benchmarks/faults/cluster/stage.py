"""Where rounds take place: the cluster, the storage, and the undisturbed run that the others are compared with."""

import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.faults.cluster.ray_cluster import HostTraining, RayCluster
from benchmarks.faults.cluster.s3_proxy import FaultProxy
from benchmarks.faults.cluster.scene import (
    Scene,
    checkpoints,
    first_step_at,
    newest_step,
    wait_while_running,
)
from vgg_ddp.run.files import MODEL_FILE, read_metrics
from vgg_ddp.run.storage import KEEP, Folder, is_checkpoint

RUN = "chaos"


@dataclass(frozen=True)
class Reference:
    """The undisturbed run.

    Attributes:
        files: the names of the files in its folder, except checkpoints, and in the storage around it.
        startup_seconds: from the command to the first step.
        epoch_seconds: from the end of the first epoch to the end of the second.
        evaluation_seconds: how long the evaluation of the second epoch took.
        end_seconds: from the end of the last epoch to the model.
    """

    model: bytes
    files: frozenset[str]
    total_steps: int
    epochs: int
    startup_seconds: float
    epoch_seconds: float
    evaluation_seconds: float
    end_seconds: float


@dataclass
class Stage:
    """Where rounds take place.

    Attributes:
        flags: those of the training command, except for the storage.
        storage: what --storage-path says.
        root: the same folder, as this machine sees it.
        log: the file for the output of the commands.
        limit_seconds: how long a command may take, until it is disturbed, and again afterwards.
    """

    cluster: RayCluster
    flags: list[object]
    storage: str
    root: Folder
    proxy: FaultProxy | None
    log: Path
    limit_seconds: float

    @property
    def run(self) -> Folder:
        return self.root / RUN

    def train(self) -> HostTraining:
        where = ("--address", self.cluster.address, "--storage-path", self.storage, "--run-name", RUN)
        return HostTraining(self.cluster, self.log, *self.flags, *where)

    def scene(self, training: HostTraining) -> Scene:
        """The scene of a command that has just started."""
        return Scene(self.cluster, training, self.run, self.proxy, time.monotonic() + self.limit_seconds)

    def files(self) -> frozenset[str]:
        """The names of all files of the run and next to it, except the newest complete checkpoints."""
        names = [name for name in self.run.names() if not is_checkpoint(name)]
        names += checkpoints(self.run, is_complete=False) + checkpoints(self.run)[:-KEEP]
        return frozenset([*names, *self.root.names()])


def train_undisturbed(stage: Stage) -> Reference:
    """Train once, and measure what the moments of the faults depend on.

    Raises:
        RuntimeError: if the run fails.
    """
    started = time.time()
    training = stage.train()
    scene = stage.scene(training)
    has_started = wait_while_running(scene, lambda: first_step_at(stage.run))
    startup_seconds = first_step_at(stage.run) - started
    wait_while_running(scene, lambda: False)
    if training.is_running:
        training.end()
        raise RuntimeError(f"the undisturbed run does not end: {training.output()[-2000:]}")
    if training.process.returncode or not has_started:
        raise RuntimeError(f"the undisturbed run failed: {training.output()[-2000:]}")
    rows = read_metrics(stage.run)
    epoch_seconds = rows[1]["time"] - rows[0]["time"]
    return Reference(
        stage.run.read(MODEL_FILE),
        stage.files(),
        newest_step(stage.run),
        len(rows),
        startup_seconds,
        epoch_seconds,
        max(0.1, epoch_seconds - rows[1]["seconds"]),
        max(0.1, stage.run.changed_ns(MODEL_FILE) / 1e9 - rows[-1]["time"]),
    )
