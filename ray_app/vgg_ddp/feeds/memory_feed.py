"""The feed for decoded images in the memory of the device that trains."""

import torch
from torch import Tensor

from vgg_ddp.config import TrainConfig
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.feeds.augment import augment
from vgg_ddp.feeds.decoded_feed import DecodedFeed
from vgg_ddp.feeds.feed import Batches


class MemoryFeed(DecodedFeed):
    """Batches from decoded images: in GPU memory or, on a CPU, in the shared memory of Ray's object store."""

    def __init__(self, dataset: Dataset, config: TrainConfig, rank: int, world_size: int, device: torch.device) -> None:
        super().__init__(dataset, config, rank, world_size, device, home=device)

    def train_batches(self, epoch: int, first_step: int) -> Batches:
        self.start_epoch(epoch)
        assert self.plan is not None
        for step in range(first_step, self._steps):
            start = step * self._config.global_batch
            yield self.batch(self.plan.order[start + self.rank_part.start : start + self.rank_part.stop])

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Images of these indices, int64 (n,), augmented as the epoch's plan says, and their labels."""
        assert self.plan is not None
        return augment(self._train, index, self.plan, self._fill), self._train_labels[index]
