"""The feed for decoded images in the memory of the device that trains."""

import torch
from torch import Tensor

from vgg_ddp.config import TrainConfig
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.feeds.augment import EpochPlan, augment
from vgg_ddp.feeds.feed import (
    Batches,
    as_tensor,
    draw_plan,
    evaluation_batch,
    mean_pixel,
    move_plan,
    rank_range,
    slices,
)


class MemoryFeed:
    """Batches from decoded images: in GPU memory or, on a CPU, in the shared memory of Ray's object store.

    Attributes:
        plan: the plan of the current epoch, on the device, in the same memory during the whole run.
        rank_part: the part of each global batch that belongs to this rank.
    """

    def __init__(self, dataset: Dataset, config: TrainConfig, rank: int, world_size: int, device: torch.device) -> None:
        self.failure: str | None = None
        self.images_on = "GPU memory" if device.type == "cuda" else "host memory"
        self.plan: EpochPlan | None = None
        train, test = dataset.train, dataset.test
        self._train, self._train_labels = as_tensor(train.images, device), as_tensor(train.labels, device)
        self._test, self._test_labels = as_tensor(test.images, device), as_tensor(test.labels, device)
        self._config, self._device, self._fill = config, device, mean_pixel(dataset.mean, device)
        self._batch_size, self._steps = config.global_batch, len(dataset.train) // config.global_batch
        self.rank_part = rank_range(config.global_batch, rank, world_size)
        self._rank_test = rank_range(len(dataset.test), rank, world_size)
        self._evaluation_batch = evaluation_batch(device, config.image_size)

    def start_epoch(self, epoch: int) -> None:
        """Set `plan` to that of an epoch, in the memory of the previous one."""
        plan = draw_plan(self._config, len(self._train), epoch)
        self.plan = move_plan(plan, self._device, self.plan)

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
        for chosen in slices(self._rank_test, self._evaluation_batch):
            yield self._test[chosen], self._test_labels[chosen]
