"""What the driver and the workers of a run tell each other."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import ray

from vgg_ddp.config import TrainConfig
from vgg_ddp.ingest import Inputs
from vgg_ddp.storage import Folder


@dataclass(frozen=True)
class Job:
    """What the driver hands to every worker.

    Attributes:
        inputs: images and weights, or a reference to them in Ray's object store.
        run: the run folder; None in a process of torchrun's that is not rank 0, which then asks rank 0.
        use_gpu: whether each worker has a GPU of its own.
        is_local: whether Ray's local mode runs the loop, in the driver's process.
        claim: a file that the driver keeps beside the run folder, where that lies on a disk.
        phases: when each phase of starting up was over so far, in seconds since 1970.
        batch_norm: False only in tests, for a model whose gradients do not depend on how a batch is split.
        stop_requested: whether this run has been asked to save and stop.
        live_seconds: how often to write progress.json; None: never.
    """

    config: TrainConfig
    inputs: "Inputs | ray.ObjectRef[Inputs]"
    run: Folder | None
    use_gpu: bool
    is_local: bool
    claim: str | None = None
    phases: dict[str, float] = field(default_factory=dict)
    batch_norm: bool = True
    stop_requested: Callable[[], bool] | None = None
    live_seconds: float | None = None


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together.

    Attributes:
        are_alike: whether all of them have the same kind of processor or GPU, and so round alike.
    """

    rank: int
    world_size: int
    local_world_size: int
    are_alike: bool

    @property
    def on_one_machine(self) -> bool:
        """Whether there are several of them, all on this machine."""
        return 1 < self.world_size == self.local_world_size


@dataclass(frozen=True)
class Outcome:
    """How the training loop ended, the same on every rank."""

    kind: Literal["finished", "stopped", "diverged", "refused", "unsaved"]
    message: str = ""
    step: int = 0
