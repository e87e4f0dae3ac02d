"""Feeds give each rank its batches, from images in memory or from a stream; the training loop is the same for both."""

import warnings
from collections.abc import Iterator
from typing import Any, Protocol

import numpy.typing as npt
import torch
from torch import Tensor

from vgg_ddp.config import TrainConfig
from vgg_ddp.data.augment import EpochPlan, augment, plan_epoch
from vgg_ddp.data.dataset import Dataset

EVALUATION_BATCH = 500
Batches = Iterator[tuple[Tensor, Tensor]]
"""Images, uint8 (n, H, W, 3), and labels, int64 (n,), on the device."""


class Feed(Protocol):
    """Gives one rank its part of every batch.

    Attributes:
        failure: describes the first image that could not be decoded; None so far.
    """

    failure: str | None

    def train_batches(self, epoch: int, first_step: int) -> Batches:
        """This rank's part of each global batch of an epoch, augmented, starting at a step of the epoch."""

    def test_batches(self) -> Batches:
        """This rank's part of the test images; each image belongs to exactly one rank."""


def draw_plan(config: TrainConfig, num_images: int, epoch: int) -> EpochPlan:
    """Draw the order and augmentation of an epoch: the same on all ranks and for both feeds."""
    recipe = config.chosen_recipe()
    return plan_epoch(num_images, config.seed, epoch, recipe.augment_shift, recipe.cutout)


def mean_pixel(mean: tuple[float, ...], device: torch.device) -> Tensor:
    """The mean color, uint8 (3,), which fills the squares of cutout."""
    return torch.tensor(mean, device=device).round().to(torch.uint8)


class MemoryFeed:
    """Batches from decoded images: in GPU memory or, on a CPU, in the shared memory of Ray's object store.

    Attributes:
        plan: the plan of the current epoch, on the device, in the same memory during the whole run.
        rank_part: the part of each global batch that belongs to this rank.
    """

    def __init__(self, dataset: Dataset, config: TrainConfig, rank: int, world_size: int, device: torch.device) -> None:
        self.failure: str | None = None
        self.plan: EpochPlan | None = None
        train, test = dataset.train, dataset.test
        self._train, self._train_labels = as_tensor(train.images, device), as_tensor(train.labels, device)
        self._test, self._test_labels = as_tensor(test.images, device), as_tensor(test.labels, device)
        self._config, self._device, self._fill = config, device, mean_pixel(dataset.mean, device)
        self._batch_size, self._steps = config.global_batch, len(dataset.train) // config.global_batch
        self.rank_part = rank_range(config.global_batch, rank, world_size)
        self._rank_test = rank_range(len(dataset.test), rank, world_size)

    def start_epoch(self, epoch: int) -> None:
        """Set `plan` to that of an epoch, in the memory of the previous one."""
        plan = draw_plan(self._config, len(self._train), epoch)
        if self.plan is None:
            self.plan = plan.to(self._device)
        else:
            self.plan.copy_from(plan)

    def train_batches(self, epoch: int, first_step: int) -> Batches:
        self.start_epoch(epoch)
        assert self.plan is not None
        for step in range(first_step, self._steps):
            start = step * self._batch_size
            yield self.batch(self.plan.order[start + self.rank_part.start : start + self.rank_part.stop])

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Images of these indices, int64 (n,), augmented as the epoch's plan says, and their labels."""
        assert self.plan is not None
        return augment(self._train, index, self.plan, self._fill), self._train_labels[index]

    def test_batches(self) -> Batches:
        part = self._rank_test
        for start in range(part.start, part.stop, EVALUATION_BATCH):
            chosen = slice(start, min(start + EVALUATION_BATCH, part.stop))
            yield self._test[chosen], self._test_labels[chosen]


def as_tensor(values: npt.NDArray[Any], device: torch.device) -> Tensor:
    """Copy an array to the device. On the CPU the tensor shares the array's memory, which may be read-only."""
    with warnings.catch_warnings():
        # torch warns about read-only arrays; nothing writes to these.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writ")
        return torch.from_numpy(values).to(device)


def rank_range(count: int, rank: int, world_size: int) -> range:
    """The part of `count` items that belongs to a rank: each item to exactly one rank; sizes differ by at most one."""
    return range(count * rank // world_size, count * (rank + 1) // world_size)
