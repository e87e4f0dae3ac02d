"""The data that the driver and the workers exchange."""

import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from vgg_ddp.config import TrainConfig
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.data.streamed_dataset import StreamedDataset
from vgg_ddp.machine.code import Code
from vgg_ddp.run.storage import Folder
from vgg_ddp.weights.pretrained import Pretrained

if TYPE_CHECKING:
    # The driver imports this module before it sets the environment variables that Ray reads on import.
    import ray
    from ray.train import UserCallback


@dataclass(frozen=True)
class Job:
    """What the driver passes to each worker.

    Attributes:
        inputs: images and weights, or a reference to them in Ray's object store.
        run: the run folder; None in torchrun's processes other than rank 0, which get it from rank 0.
        use_gpu: whether each worker has its own GPU.
        is_local: whether the loop runs in the driver's process, in Ray Train's local mode.
        lock_file: the driver's lock on the run, or None if the run folder is not on a disk. A worker that cannot see it
            does not share the driver's storage.
        phases: end time of each start-up phase so far, in seconds since 1970.
        stop_requested: returns whether the run should save and stop.
        callbacks: those that the loop itself calls, in Ray Train's local mode.
        has_spares: whether each worker keeps a spare process (`compat/ray_spares.py`).
        code: the driver's copy of this package; the workers must run the same code.
    """

    config: TrainConfig
    inputs: "Inputs | ray.ObjectRef[Inputs]"
    run: Folder | None
    use_gpu: bool
    is_local: bool
    lock_file: str | None = None
    phases: dict[str, float] = field(default_factory=dict)
    stop_requested: Callable[[], bool] | None = None
    callbacks: "Sequence[UserCallback]" = ()
    has_spares: bool = False
    code: Code = field(default_factory=Code.of_this_process)


OutcomeKind = Literal["finished", "stopped", "diverged", "refused", "unsaved"]


class RefusedError(Exception):
    """The run cannot start; the message is one line. Raised on all ranks."""

    kind: OutcomeKind = "refused"


class TakenOverError(RefusedError):
    """Another command has taken the run over, so this one cannot save it."""

    kind: OutcomeKind = "unsaved"


@dataclass(frozen=True)
class Outcome:
    """How the training loop ended, the same on every rank.

    Attributes:
        signal_number: the signal that stopped the run, as far as the driver knows.
    """

    kind: OutcomeKind
    message: str = ""
    step: int = 0
    signal_number: int = signal.SIGTERM


@dataclass(frozen=True)
class Inputs:
    """The inputs of a run: images, with --init-from initial weights, and the digest of the images' files."""

    dataset: Dataset | StreamedDataset
    pretrained: Pretrained | None = None
    digest: str = ""
