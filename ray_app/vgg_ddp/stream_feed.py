"""A rank's batches from images that do not fit into memory, through Ray Data.

Each rank draws its part of the row groups for every epoch anew and has Ray decode them, ahead of it, on any machine of
the cluster. Ray Data's own split of one stream among the workers would give each epoch another order in every run, and
could not begin in the middle of an epoch: a resumed run would see some images twice, and others not at all.
"""

import logging
import time
from collections.abc import Iterator
from itertools import islice

import numpy as np
import ray
import ray.data
import torch
from ray.data import DataContext, ExecutionResources, TaskPoolStrategy
from ray.data._internal.execution.execution_callback import ExecutionCallback

from vgg_ddp.batches import augment, rank_range
from vgg_ddp.config import TrainConfig
from vgg_ddp.feeds import EVALUATION_BATCH, Batches, as_tensor, draw_plan, mean_pixel
from vgg_ddp.stream import Batch, Piece, StreamedDataset, cut, decode_piece, first_error

# Images are shuffled within windows of neighbours in the drawn order of row groups.
WINDOW_IMAGES = 10_000
WINDOW_BYTES = 2**27
# Parts of a CPU that a task which decodes takes, as Ray counts, where workers leave any; and of the object store that
# all ranks take together.
DECODING_CPUS = 0.5
STORE_SHARE = 0.3
PREFETCHED_BATCHES = 2
QUICK_LOOK_SECONDS, MOST_LOOKS_IN_VAIN = 0.01, 5
SHORTEST_REST_SECONDS, MOST_DOUBLINGS = 0.001, 5


class StreamFeed:
    """Images that are decoded while training goes on.

    Attributes:
        failure: the first image that could not be decoded. In training a black one takes its place, so that no other
            rank waits; of the test images none follow.
    """

    def __init__(
        self, dataset: StreamedDataset, config: TrainConfig, rank: int, world_size: int, device: torch.device
    ) -> None:
        self.failure: str | None = None
        self._dataset, self._device, self._fill = dataset, device, mean_pixel(dataset.mean, device)
        self._config, self._rank = config, rank
        self._steps = dataset.num_train // config.global_batch
        self._mine = rank_range(config.global_batch, rank, world_size)
        self._mine_of_test = rank_range(dataset.num_test, rank, world_size)
        image_bytes = dataset.image_size**2 * 3
        window = min(WINDOW_IMAGES, WINDOW_BYTES // image_bytes)
        self._steps_of_window = max(1, window // len(self._mine))
        self._task_options = _set_up_ray_data(world_size, config.verbose)

    def train_batches(self, epoch: int, first_step: int) -> Batches:
        plan, mine = draw_plan(self._config, self._dataset.num_train, epoch), self._mine
        first_window, skipped = divmod(first_step, self._steps_of_window)
        order = np.random.default_rng([self._config.seed, epoch, 1]).permutation(len(self._dataset.train_groups))
        groups = [self._dataset.train_groups[index] for index in order]
        start = self._steps * mine.start + first_window * self._steps_of_window * len(mine)
        pieces = cut(groups, start, self._steps * mine.stop)
        batches = islice(self._shuffled(pieces, epoch, first_window), skipped, None)
        for batch in batches:
            self.failure = self.failure or first_error(batch)
            images, labels = (as_tensor(batch[name], self._device) for name in ("image", "label"))
            chosen = torch.arange(len(labels), device=self._device)
            of_batch = plan.of(torch.from_numpy(batch["number"])).to(self._device)
            yield augment(images, chosen, of_batch, self._fill), labels

    def test_batches(self) -> Batches:
        mine = self._mine_of_test
        for batch in self._decoded(cut(self._dataset.test_groups, mine.start, mine.stop), EVALUATION_BATCH):
            self.failure = self.failure or first_error(batch)
            if self.failure:
                return
            yield as_tensor(batch["image"], self._device), as_tensor(batch["label"], self._device)

    def _decoded(self, pieces: list[Piece], batch_size: int) -> Iterator[Batch]:
        """The images of the pieces in their order, in batches; decoded ahead by Ray's tasks, a piece each."""
        if not pieces:
            return iter(())
        folder, image_size = self._dataset.folder, self._dataset.image_size

        def decode(batch: Batch) -> Iterator[Batch]:
            (index,) = batch["item"]
            yield from decode_piece(folder, pieces[index], image_size)

        # A range would be made by tasks, too, which ask for a CPU each.
        numbers = ray.data.from_items(list(range(len(pieces))), override_num_blocks=len(pieces))
        images = numbers.map_batches(decode, batch_size=1, **self._task_options)
        batches: Iterator[Batch] = iter(
            images.iter_batches(batch_size=batch_size, batch_format="numpy", prefetch_batches=PREFETCHED_BATCHES)
        )
        return batches

    def _shuffled(self, pieces: list[Piece], epoch: int, first_window: int) -> Iterator[Batch]:
        """Batches whose images are drawn from one window after the other.

        While one window is handed out, the next one fills at the same pace.
        """
        batch_size = len(self._mine)
        source = self._decoded(pieces, batch_size)
        waiting = list(islice(source, self._steps_of_window))
        window = first_window
        while waiting:
            images = {name: np.concatenate([batch[name] for batch in waiting]) for name in waiting[0]}
            order = np.random.default_rng([self._config.seed, epoch, 2, self._rank, window]).permutation(
                len(images["label"])
            )
            waiting = []
            for start in range(0, len(order), batch_size):
                waiting += islice(source, 1)
                yield {name: values[order[start : start + batch_size]] for name, values in images.items()}
            window += 1


class Unhurried(ExecutionCallback):  # type: ignore[misc]
    """Lets Ray Data's executor, a thread of the worker's, rest when it looks at its tasks again and again in vain.

    Ray 2.60 does so whenever decoded images wait to be taken, and takes up to a core of each worker's for it. While
    there is something to do, each look waits for the tasks by itself. Each rest is twice as long as the one before,
    up to 32 ms.
    """

    def __init__(self) -> None:
        self._looks_in_vain = 0
        self._looked_at = 0.0

    def on_execution_step(self, executor: object) -> None:  # noqa: ARG002 - Ray's signature
        quick = time.monotonic() - self._looked_at < QUICK_LOOK_SECONDS
        self._looks_in_vain = self._looks_in_vain + 1 if quick else 0
        rests = self._looks_in_vain - MOST_LOOKS_IN_VAIN
        if rests >= 0:
            time.sleep(SHORTEST_REST_SECONDS * 2 ** min(rests, MOST_DOUBLINGS))
        self._looked_at = time.monotonic()


def _set_up_ray_data(world_size: int, verbose: bool) -> dict[str, object]:
    """Let the ranks share what the cluster has, and keep the images in order.

    Returns:
        Options of the tasks that decode.
    """
    context = DataContext.get_current()
    total = ray.cluster_resources()
    cpus = ray.available_resources().get("CPU", 0.0)
    context.execution_options.preserve_order = True
    context.execution_options.resource_limits = ExecutionResources.for_limits(
        cpu=max(DECODING_CPUS, cpus / world_size),
        object_store_memory=total.get("object_store_memory", 0.0) * STORE_SHARE / world_size,
    )
    context.custom_execution_callback_classes = [Unhurried]
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    if not verbose:
        # It says of every epoch that its images were decoded.
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        # It warns that there is no bar.
        logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
    # If the nodes have so much together, one of them has room for a task. Where workers took all CPUs (an elastic group
    # that grew, or one that lost a node), tasks that ask for one would never start.
    nodes = sum(node["Alive"] for node in ray.nodes())
    if cpus >= DECODING_CPUS * nodes:
        return {"num_cpus": DECODING_CPUS}
    return {"num_cpus": 0, "compute": TaskPoolStrategy(size=1)}
