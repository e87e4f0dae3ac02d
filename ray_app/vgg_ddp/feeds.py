"""Where a rank's batches come from. The training loop does not know which of the feeds it has."""

import warnings
from collections.abc import Iterator
from typing import Any, Protocol

import numpy.typing as npt
import torch
from torch import Tensor

from vgg_ddp.batches import EpochPlan, augment, plan_epoch, rank_range
from vgg_ddp.config import TrainConfig
from vgg_ddp.data import Dataset

EVALUATION_BATCH = 500
Batches = Iterator[tuple[Tensor, Tensor]]
"""Images, uint8 (n, H, W, 3), and labels, int64 (n,), on the device."""


class Feed(Protocol):
    """One rank's view of the images.

    Attributes:
        failure: what is wrong with an image, if one could not be had.
    """

    failure: str | None

    def train_batches(self, epoch: int, first_step: int) -> Batches:
        """This rank's part of each global batch of an epoch, augmented, from a step of the epoch on."""

    def test_batches(self) -> Batches:
        """This rank's part of the test images, each of which belongs to exactly one rank."""


def draw_plan(config: TrainConfig, num_images: int, epoch: int) -> EpochPlan:
    """The order and the augmentation of an epoch, the same on all ranks and under both feeds."""
    recipe = config.chosen_recipe()
    return plan_epoch(num_images, config.seed, epoch, recipe.augment_shift, recipe.alternating_flip, recipe.cutout)


def mean_pixel(mean: tuple[float, ...], device: torch.device) -> Tensor:
    """The mean of the channels as a pixel, uint8 (3,): what takes the place of what is cut out."""
    return torch.tensor(mean, device=device).round().to(torch.uint8)


class MemoryFeed:
    """All images decoded; on a GPU they lie there, on the CPU in the memory of Ray's object store."""

    def __init__(self, dataset: Dataset, config: TrainConfig, rank: int, world_size: int, device: torch.device) -> None:
        self.failure: str | None = None
        train, test = dataset.train, dataset.test
        self._train, self._train_labels = as_tensor(train.images, device), as_tensor(train.labels, device)
        self._test, self._test_labels = as_tensor(test.images, device), as_tensor(test.labels, device)
        self._config, self._device, self._fill = config, device, mean_pixel(dataset.mean, device)
        self._batch_size, self._steps = config.global_batch, len(dataset.train) // config.global_batch
        self._mine = rank_range(config.global_batch, rank, world_size)
        self._mine_of_test = rank_range(len(dataset.test), rank, world_size)

    def train_batches(self, epoch: int, first_step: int) -> Batches:
        plan = draw_plan(self._config, len(self._train), epoch).to(self._device)
        for step in range(first_step, self._steps):
            start = step * self._batch_size
            index = plan.order[start + self._mine.start : start + self._mine.stop]
            yield augment(self._train, index, plan, self._fill), self._train_labels[index]

    def test_batches(self) -> Batches:
        mine = self._mine_of_test
        for start in range(mine.start, mine.stop, EVALUATION_BATCH):
            chosen = slice(start, min(start + EVALUATION_BATCH, mine.stop))
            yield self._test[chosen], self._test_labels[chosen]


def as_tensor(values: npt.NDArray[Any], device: torch.device) -> Tensor:
    """An array on the device. On the CPU they share their memory, which may be read-only: nothing writes to it."""
    with warnings.catch_warnings():
        # torch warns if the array is not writable.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writ")
        return torch.from_numpy(values).to(device)
