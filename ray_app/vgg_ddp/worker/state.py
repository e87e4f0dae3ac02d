"""What a rank has: `Worker` stays the same during training; `TrainState` changes, and is what a checkpoint contains."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vgg_ddp.config import TrainConfig
from vgg_ddp.feeds.feed import EvaluationSplit, Feed
from vgg_ddp.machine.precision import DTYPES
from vgg_ddp.recipes import Recipe
from vgg_ddp.run.checkpoint import copy_to_host
from vgg_ddp.run.files import VALIDATION_COLUMNS, Row
from vgg_ddp.run.saver import Saver
from vgg_ddp.run.storage import Folder
from vgg_ddp.worker.ddp import buffer_vector, gather_buffers, load_buffers, set_buffers
from vgg_ddp.worker.decisions import Control
from vgg_ddp.worker.hangs import HangMonitor
from vgg_ddp.worker.metrics import Sums
from vgg_ddp.worker.optimizers import Optimizers, Schedule

if TYPE_CHECKING:
    # Import Ray, which a step does not need.
    from ray.train import UserCallback

    from vgg_ddp.observe.telemetry import Telemetry


@dataclass(frozen=True)
class Worker:
    """One rank of the run: everything that does not change during training.

    Attributes:
        ddp_model: the model wrapped in DDP; its backward pass averages gradients over the ranks.
        num_evaluated: number of images in each split that is evaluated; without a validation split, it has none.
        graphed: whether CUDA graphs take the steps (`graphs.py`).
        callbacks: those that this process calls itself; Ray's controller calls the others.
        fingerprint: number of training images, class names, and digest of the images' files; a resumed run must find
            the same.
    """

    config: TrainConfig
    recipe: Recipe
    run: Folder
    rank: int
    world_size: int
    device: torch.device
    precision: str
    ddp_model: nn.Module
    feed: Feed
    mean: Tensor
    std: Tensor
    class_names: tuple[str, ...]
    preprocessing: dict[str, object]
    num_evaluated: dict[EvaluationSplit, int]
    steps_per_epoch: int
    fingerprint: dict[str, object]
    schedule: Schedule
    control: Control
    saver: Saver
    telemetry: "Telemetry"
    monitor: HangMonitor
    graphed: bool = False
    callbacks: "Sequence[UserCallback]" = ()

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.precision]

    @property
    def evaluation_split(self) -> EvaluationSplit:
        """The split that is evaluated after each epoch."""
        return "validation" if self.num_evaluated["validation"] else "test"

    @property
    def total_steps(self) -> int:
        return self.config.epochs * self.steps_per_epoch


@dataclass
class TrainState:
    """Everything that training changes on a rank.

    Attributes:
        model: the model itself, without DDP.
        sums: loss, correct predictions, and images of the current epoch.
        step: optimizer steps taken.
        epoch_seconds: training time of the current epoch.
        rows: metrics of the finished epochs, one row each.
        best: with --keep-best, parameters and buffers of the best epoch so far, in host memory.
    """

    model: nn.Module
    optimizers: Optimizers
    sums: Sums
    step: int = 0
    epoch_seconds: float = 0.0
    rows: list[Row] = field(default_factory=list)
    best: dict[str, Any] | None = None

    @property
    def epoch(self) -> int:
        """The current epoch, counted from 0."""
        return len(self.rows)

    def snapshot(self) -> dict[str, Any]:
        """The state as a checkpoint stores it. A collective (every rank must call it)."""
        return {
            "step": self.step,
            "seconds": self.epoch_seconds,
            "rows": list(self.rows),
            "replica": {
                "parameters": {name: parameter.detach() for name, parameter in self.model.named_parameters()},
                "buffers": gather_buffers(self.model),
                "optimizers": self.optimizers.state(),
            },
            "sums": self.sums.total(),
            **({"best": self.best} if self.best else {}),
        }

    def remember_weights(self) -> None:
        """Remember these weights as the best so far. A device-to-host sync."""
        parameters = {name: parameter.detach() for name, parameter in self.model.named_parameters()}
        self.best = copy_to_host({"parameters": parameters, "buffers": buffer_vector(self.model)})

    def return_to_best(self) -> None:
        """Set the weights to the best ones."""
        assert self.best is not None
        self._set_parameters(self.best["parameters"])
        set_buffers(self.model, self.best["buffers"].to(next(self.model.parameters()).device))

    def _set_parameters(self, saved: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(saved[name])

    def restore(self, saved: dict[str, Any], rank: int) -> None:
        """Continue from a snapshot.

        Raises:
            ValueError: if the snapshot is from another model.
        """
        parameters = dict(self.model.named_parameters())
        saved_parameters = saved["replica"]["parameters"]
        shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
        saved_shapes = {name: tuple(parameter.shape) for name, parameter in saved_parameters.items()}
        if shapes != saved_shapes:
            name = min(name for name in shapes | saved_shapes if shapes.get(name) != saved_shapes.get(name))
            shape, saved_shape = shapes.get(name, "missing"), saved_shapes.get(name, "missing")
            raise ValueError(
                f"the checkpoint is from another model than the {type(self.model).__name__} that build_model in "
                f"vgg_ddp/model/build.py builds: {name} is {saved_shape} in the checkpoint, and {shape} in this model"
            )
        self._set_parameters(saved_parameters)
        load_buffers(self.model, saved["replica"]["buffers"])
        self.optimizers.load_state(saved["replica"]["optimizers"])
        self.step, self.epoch_seconds = saved["step"], saved["seconds"]
        # Rows of older versions have no validation columns.
        self.rows = [dict.fromkeys(VALIDATION_COLUMNS, math.nan) | row for row in saved["rows"]]
        self.sums.restart_from(saved["sums"], rank)
        self.best = saved.get("best")
