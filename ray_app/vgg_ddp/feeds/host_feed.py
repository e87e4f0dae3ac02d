"""A feed for decoded images that do not fit in the GPU's memory: they stay in the host's."""

import torch
from torch import Tensor

from vgg_ddp.config import TrainConfig
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.feeds.decoded_feed import DecodedFeed
from vgg_ddp.feeds.feed import Batches, EvaluationSplit
from vgg_ddp.feeds.prefetch import augmented, prefetch

CPU = torch.device("cpu")


class HostFeed(DecodedFeed):
    """The same batches as a `MemoryFeed`, from images in host memory; each batch is copied to the GPU."""

    def __init__(self, dataset: Dataset, config: TrainConfig, rank: int, world_size: int, device: torch.device) -> None:
        super().__init__(dataset, config, rank, world_size, device, home=CPU)

    def train_batches(self, epoch: int, first_step: int) -> Batches:
        size, part = self._config.global_batch, self.rank_part
        order = self.start_epoch(epoch).order[: self._steps * size].view(-1, size)
        assert self.plan is not None
        batches = (self._select(index) for index in order[first_step:, part.start : part.stop])
        return augmented(batches, self.plan, self._fill, self._device)

    def _select(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images of these indices, in pinned memory if they go to a GPU; their labels; and the indices."""
        shape = (len(index), *self._train.shape[1:])
        images = torch.empty(shape, dtype=torch.uint8, pin_memory=self._device.type == "cuda")
        torch.index_select(self._train, 0, index, out=images)
        return images, self._train_labels[index], index

    def evaluation_batches(self, split: EvaluationSplit) -> Batches:
        return prefetch(super().evaluation_batches(split), self._device)
