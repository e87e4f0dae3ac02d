"""One command's attempt at a run, on a Ray cluster or in this process."""

import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vgg_ddp.data.dataset import Dataset
from vgg_ddp.data.streamed_dataset import StreamedDataset
from vgg_ddp.flags import UsageError
from vgg_ddp.job import Inputs
from vgg_ddp.run.runs import Run

if TYPE_CHECKING:
    # The driver imports this module before it sets the environment variables that Ray reads on import.
    from ray.train import UserCallback


@dataclass(frozen=True)
class Attempt:
    """One command's attempt at a run.

    Attributes:
        loading: the inputs, which another thread loads.
        phases: end time of each start-up phase so far, in seconds since 1970.
        callbacks: Ray Train callbacks of the user.
        show_bar: whether to show a progress bar on a terminal.
    """

    run: Run
    loading: "Future[Inputs]"
    phases: dict[str, float]
    callbacks: "Sequence[UserCallback]"
    show_bar: bool

    def wait_for_inputs(self) -> Inputs:
        inputs = self.loading.result()
        self.phases["images decoded"] = time.time()
        return inputs


def with_batch_size(run: Run, dataset: Dataset | StreamedDataset, num_workers: int) -> Run:
    """The same run with its global batch set.

    Raises:
        UsageError: if a batch needs more images than the training split has.
    """
    config = run.config.with_batch_size(dataset.num_train, num_workers)
    images = f"{dataset.num_train} training images{' left after the validation split' * bool(dataset.num_validation)}"
    if run.config.batch_size is None and config.global_batch > dataset.num_train:
        raise UsageError(
            f"{num_workers} worker(s) need a batch of {config.global_batch} images, but there are only {images}: use "
            "fewer --num-workers."
        )
    if config.global_batch > dataset.num_train:
        raise UsageError(f"--batch-size {config.batch_size}: there are only {images}: use at most that many.")
    return replace(run, config=config)


def announce(run: Run, dataset: Dataset | StreamedDataset) -> None:
    """Print the data and the run folder."""
    images = f"{dataset.num_train:,} training and {dataset.num_test:,} {dataset.test_name or 'test'} images"
    if dataset.test_name is None:
        images = f"{dataset.num_train:,} training images (the test images have no labels: no test accuracy)"
    if dataset.num_validation:
        images += f", {dataset.num_validation:,} validation images"
    print(
        f"Data:      {dataset.name}: {images}, {len(dataset.class_names)} classes"
        + ", decoded during training" * (run.config.ingest == "stream")
    )
    print(f"Run:       {'resuming ' if run.exists else ''}{run.folder}", flush=True)
