"""A feed that decodes images with Ray Data during training, for data that does not fit in memory.

In each epoch, each rank draws its own part of the row groups, and Ray Data's tasks decode them ahead of training,
anywhere in the cluster. Ray Data's streaming_split does not work here: its order of images differs from run to run, and
it cannot start in the middle of an epoch, so a resumed run would get some images twice and others never.
"""

from collections.abc import Iterator
from itertools import islice

import numpy as np
import ray
import ray.data
import torch
from ray.data import ExecutionResources, TaskPoolStrategy
from torch import Tensor

from vgg_ddp.compat.ray_data import set_up_context
from vgg_ddp.config import TrainConfig
from vgg_ddp.data.streamed_dataset import Batch, RowRange, StreamedDataset, decode_rows, first_error, select_rows
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
)
from vgg_ddp.feeds.prefetch import augmented, prefetch

# The order of row groups is shuffled first, then the images within windows of this size.
WINDOW_IMAGES = 10_000
WINDOW_BYTES = 2**27
# CPUs that Ray reserves per decoding task, if workers leave any, and the fraction of the object store that all ranks
# together may use.
DECODING_CPUS = 0.5
STORE_SHARE = 0.3
PREFETCHED_BATCHES = 2
CPU = torch.device("cpu")


class StreamFeed:
    """Batches from images that Ray Data's tasks decode during training.

    Attributes:
        failure: describes the first image that could not be decoded; None so far. Training continues with black images
            until all ranks have decided to stop, so that no rank hangs; evaluation ends early.
    """

    def __init__(
        self, dataset: StreamedDataset, config: TrainConfig, rank: int, world_size: int, device: torch.device
    ) -> None:
        self.failure: str | None = None
        self.images_on = "storage"
        self._plan: EpochPlan | None = None
        self._dataset, self._device, self._fill = dataset, device, mean_pixel(dataset.mean, device)
        self._config, self._rank, self._world_size = config, rank, world_size
        self._steps = dataset.num_train // config.global_batch
        self._rank_part = rank_range(config.global_batch, rank, world_size)
        image_bytes = dataset.image_size**2 * 3
        window = min(WINDOW_IMAGES, WINDOW_BYTES // image_bytes)
        self._steps_per_window = max(1, window // len(self._rank_part))
        self._task_options = _set_up_ray_data(world_size, config.verbose)

    def train_batches(self, epoch: int, first_step: int) -> Batches:
        plan = draw_plan(self._config, self._dataset.num_train, epoch)
        self._plan = move_plan(plan, self._device, self._plan)
        return augmented(self._train_batches(epoch, first_step), self._plan, self._fill, self._device)

    def _train_batches(self, epoch: int, first_step: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        part = self._rank_part
        first_window, skipped = divmod(first_step, self._steps_per_window)
        order = np.random.default_rng([self._config.seed, epoch, 1]).permutation(len(self._dataset.train_groups))
        groups = [self._dataset.train_groups[index] for index in order]
        start = self._steps * part.start + first_window * self._steps_per_window * len(part)
        ranges = select_rows(groups, start, self._steps * part.stop)
        for batch in islice(self._shuffled(ranges, epoch, first_window), skipped, None):
            self.failure = self.failure or first_error(batch)
            yield as_tensor(batch["image"], CPU), as_tensor(batch["label"], CPU), as_tensor(batch["index"], CPU)

    def evaluation_batches(self, split: EvaluationSplit) -> Batches:
        return prefetch(self._evaluation_batches(split), self._device)

    def _evaluation_batches(self, split: EvaluationSplit) -> Batches:
        dataset = self._dataset
        groups = {"validation": dataset.validation_groups, "test": dataset.test_groups}[split]
        part = rank_range(sum(group.rows for group in groups), self._rank, self._world_size)
        ranges = select_rows(groups, part.start, part.stop)
        for batch in self._decoded(ranges, evaluation_batch(self._device, dataset.image_size)):
            self.failure = self.failure or first_error(batch)
            if self.failure:
                return
            yield as_tensor(batch["image"], CPU), as_tensor(batch["label"], CPU)

    def _decoded(self, ranges: list[RowRange], batch_size: int) -> Iterator[Batch]:
        """Batches of the images in these rows, in order. Ray Data decodes them ahead, one task per range."""
        if not ranges:
            return iter(())
        dataset = self._dataset
        folder, image_size, columns = dataset.folder, dataset.image_size, dataset.columns

        def decode(batch: Batch) -> Iterator[Batch]:
            (index,) = batch["item"]
            yield from decode_rows(folder, ranges[index], image_size, columns)

        # Not ray.data.range: its read tasks reserve a CPU each.
        indices = ray.data.from_items(list(range(len(ranges))), override_num_blocks=len(ranges))
        images = indices.map_batches(decode, batch_size=1, **self._task_options)
        batches: Iterator[Batch] = iter(
            images.iter_batches(batch_size=batch_size, batch_format="numpy", prefetch_batches=PREFETCHED_BATCHES)
        )
        return batches

    def _shuffled(self, ranges: list[RowRange], epoch: int, first_window: int) -> Iterator[Batch]:
        """Batches of shuffled images, one window after another.

        While the batches of one window are consumed, the next window fills at the same rate.
        """
        batch_size = len(self._rank_part)
        source = self._decoded(ranges, batch_size)
        next_window = list(islice(source, self._steps_per_window))
        window = first_window
        while next_window:
            images = {name: np.concatenate([batch[name] for batch in next_window]) for name in next_window[0]}
            order = np.random.default_rng([self._config.seed, epoch, 2, self._rank, window]).permutation(
                len(images["label"])
            )
            next_window = []
            for start in range(0, len(order), batch_size):
                next_window += islice(source, 1)
                yield {name: values[order[start : start + batch_size]] for name, values in images.items()}
            window += 1


def _set_up_ray_data(world_size: int, verbose: bool) -> dict[str, object]:
    """Divide the cluster's resources among the ranks, and keep the images in order.

    Returns:
        Options for the decoding tasks.
    """
    context = set_up_context(verbose)
    total = ray.cluster_resources()
    cpus = ray.available_resources().get("CPU", 0.0)
    context.execution_options.resource_limits = ExecutionResources.for_limits(
        cpu=max(DECODING_CPUS, cpus / world_size),
        object_store_memory=total.get("object_store_memory", 0.0) * STORE_SHARE / world_size,
    )
    # With this many free CPUs in total, at least one node has room for a task. If workers hold all CPUs (an elastic
    # group that grew, or a cluster that lost a node), tasks that reserve CPUs would never start.
    nodes = sum(node["Alive"] for node in ray.nodes())
    if cpus >= DECODING_CPUS * nodes:
        return {"num_cpus": DECODING_CPUS}
    return {"num_cpus": 0, "compute": TaskPoolStrategy(size=1)}
