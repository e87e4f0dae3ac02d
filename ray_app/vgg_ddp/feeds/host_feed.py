"""A feed for decoded images that do not fit in the GPU's memory: they stay in the host's."""

import torch
from torch import Tensor

from vgg_ddp.config import TrainConfig
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.feeds.augment import EpochPlan
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
from vgg_ddp.feeds.prefetch import augmented, prefetch

CPU = torch.device("cpu")


class HostFeed:
    """The same batches as a `MemoryFeed`, from images in host memory; each batch is copied to the GPU."""

    def __init__(self, dataset: Dataset, config: TrainConfig, rank: int, world_size: int, device: torch.device) -> None:
        self.failure: str | None = None
        self.images_on = "host memory"
        train, test = dataset.train, dataset.test
        self._train, self._train_labels = as_tensor(train.images, CPU), as_tensor(train.labels, CPU)
        self._test, self._test_labels = as_tensor(test.images, CPU), as_tensor(test.labels, CPU)
        self._config, self._device, self._fill = config, device, mean_pixel(dataset.mean, device)
        self._plan: EpochPlan | None = None
        self._steps = len(dataset.train) // config.global_batch
        self._rank_part = rank_range(config.global_batch, rank, world_size)
        self._rank_test = rank_range(len(dataset.test), rank, world_size)
        self._evaluation_batch = evaluation_batch(device, config.image_size)

    def train_batches(self, epoch: int, first_step: int) -> Batches:
        plan = draw_plan(self._config, len(self._train), epoch)
        order = plan.order[: self._steps * self._config.global_batch].view(-1, self._config.global_batch)
        self._plan = move_plan(plan, self._device, self._plan)
        part = self._rank_part
        batches = (self._select(index) for index in order[first_step:, part.start : part.stop])
        return augmented(batches, self._plan, self._fill, self._device)

    def _select(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images of these indices, in pinned memory if they go to a GPU; their labels; and the indices."""
        shape = (len(index), *self._train.shape[1:])
        images = torch.empty(shape, dtype=torch.uint8, pin_memory=self._device.type == "cuda")
        torch.index_select(self._train, 0, index, out=images)
        return images, self._train_labels[index], index

    def test_batches(self) -> Batches:
        return prefetch(self._test_slices(), self._device)

    def _test_slices(self) -> Batches:
        for chosen in slices(self._rank_test, self._evaluation_batch):
            yield self._test[chosen], self._test_labels[chosen]
