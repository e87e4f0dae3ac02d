"""What the feeds of decoded images share, wherever the images are kept."""

import torch

from vgg_ddp.config import TrainConfig
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.feeds.augment import EpochPlan
from vgg_ddp.feeds.feed import (
    Batches,
    EvaluationSplit,
    as_tensor,
    draw_plan,
    evaluation_batch,
    mean_pixel,
    move_plan,
    rank_range,
    slices,
)


class DecodedFeed:
    """All splits in the memory of one device, and the plan of the epoch on the device that trains.

    Args:
        home: the device that keeps the images.

    Attributes:
        plan: the plan of the current epoch, in the same memory during the whole run.
        rank_part: the part of each global batch that belongs to this rank.
    """

    def __init__(
        self,
        dataset: Dataset,
        config: TrainConfig,
        rank: int,
        world_size: int,
        device: torch.device,
        home: torch.device,
    ) -> None:
        self.failure: str | None = None
        self.images_on = "GPU memory" if home.type == "cuda" else "host memory"
        self.plan: EpochPlan | None = None
        self._train, self._train_labels = (
            as_tensor(part, home) for part in (dataset.train.images, dataset.train.labels)
        )
        self._evaluated = {
            name: (as_tensor(split.images, home), as_tensor(split.labels, home))
            for name, split in (("validation", dataset.validation), ("test", dataset.test))
            if split is not None
        }
        self._config, self._device, self._fill = config, device, mean_pixel(dataset.mean, device)
        self._steps = len(dataset.train) // config.global_batch
        self.rank_part = rank_range(config.global_batch, rank, world_size)
        self._rank, self._world_size = rank, world_size
        self._evaluation_batch = evaluation_batch(device, config.image_size)

    def start_epoch(self, epoch: int) -> EpochPlan:
        """Set `plan` to that of an epoch, in the memory of the previous one; return the drawn plan, on the host."""
        drawn = draw_plan(self._config, len(self._train), epoch)
        self.plan = move_plan(drawn, self._device, self.plan)
        return drawn

    def evaluation_batches(self, split: EvaluationSplit) -> Batches:
        """This rank's images of a split, where they are kept."""
        images, labels = self._evaluated[split]
        for chosen in slices(rank_range(len(labels), self._rank, self._world_size), self._evaluation_batch):
            yield images[chosen], labels[chosen]
