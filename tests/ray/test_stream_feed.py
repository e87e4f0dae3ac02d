"""Batches that Ray Data decodes, compared with those from memory."""

import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from vgg_ddp.config import TrainConfig
from vgg_ddp.data.dataset import Dataset, load_dataset
from vgg_ddp.data.source import find_source
from vgg_ddp.data.streamed_dataset import StreamedDataset, open_stream
from vgg_ddp.feeds import stream_feed
from vgg_ddp.feeds.memory_feed import MemoryFeed
from vgg_ddp.feeds.stream_feed import StreamFeed
from vgg_ddp.job import Outcome
from vgg_ddp.run.files import Row

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
Train = Callable[..., tuple[Outcome, list[Row]]]
Batch = tuple[torch.Tensor, torch.Tensor]
# 16 steps of 14 images an epoch; 6 images are left out.
CONFIG = TrainConfig(num_workers=2, batch_size=14, seed=3, cutout=9)


@pytest.fixture(scope="module")
def streamed(numbered_images: Path, ray_cluster: None) -> StreamedDataset:  # noqa: ARG001 - Ray Data needs the cluster
    return open_stream(find_source(str(numbered_images), ""), 32)


@pytest.fixture(scope="module")
def whole(numbered_images: Path) -> Dataset:
    return load_dataset(find_source(str(numbered_images), ""), 32)


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of five steps for two ranks."""
    monkeypatch.setattr(stream_feed, "WINDOW_IMAGES", 35)


def epoch_of(dataset: StreamedDataset, epoch: int, first_step: int = 0, world_size: int = 2) -> list[list[Batch]]:
    """The batches of each rank."""
    feeds = [StreamFeed(dataset, CONFIG, rank, world_size, CPU) for rank in range(world_size)]
    return [list(feed.train_batches(epoch, first_step)) for feed in feeds]


def test_epoch_has_every_step_for_every_rank_and_no_image_twice(streamed: StreamedDataset) -> None:
    for world_size in (1, 2, 3):
        ranks = epoch_of(streamed, 0, world_size=world_size)
        assert [len(batches) for batches in ranks] == [16] * world_size
        sizes = {tuple(len(labels) for _, labels in step) for step in zip(*ranks, strict=True)}
        assert sizes == {{1: (14,), 2: (7, 7), 3: (4, 5, 5)}[world_size]}
        numbers = torch.cat([labels for batches in ranks for _, labels in batches]).tolist()
        assert len(set(numbers)) == len(numbers) == 16 * 14


def test_images_are_augmented_like_those_in_memory(streamed: StreamedDataset, whole: Dataset) -> None:
    for epoch in (0, 1):
        memory = MemoryFeed(whole, CONFIG, 0, 1, CPU).train_batches(epoch, 0)
        in_memory = {int(label): image for batch in memory for image, label in zip(*batch, strict=True)}
        compared = 0
        for images, labels in epoch_of(streamed, epoch)[1]:
            for image, label in zip(images, labels, strict=True):
                if int(label) in in_memory:
                    assert torch.equal(image, in_memory[int(label)])
                    compared += 1
        assert compared > 90


def order(batches: list[Batch]) -> list[int]:
    return torch.cat([labels for _, labels in batches]).tolist()  # type: ignore[no-any-return]


def test_order_is_shuffled_and_differs_from_epoch_to_epoch_but_not_from_run_to_run(streamed: StreamedDataset) -> None:
    first, again, second = epoch_of(streamed, 0), epoch_of(streamed, 0), epoch_of(streamed, 1)
    assert [order(batches) for batches in first] == [order(batches) for batches in again]
    assert order(first[0]) != order(second[0])
    # Neighbors in a file are rarely consecutive.
    steps = np.abs(np.diff(order(first[0])))
    assert (steps == 1).mean() < 0.1
    # The images left out differ from epoch to epoch.
    seen = [set(order(ranks[0]) + order(ranks[1])) for ranks in (first, second)]
    assert seen[0] != seen[1]


@pytest.mark.parametrize("first_step", [1, 5, 12, 15])
def test_epoch_resumes_from_any_step_with_the_same_batches(streamed: StreamedDataset, first_step: int) -> None:
    for rest, whole_epoch in zip(epoch_of(streamed, 2, first_step), epoch_of(streamed, 2), strict=True):
        assert len(rest) == 16 - first_step
        for (images, labels), (expected_images, expected_labels) in zip(rest, whole_epoch[first_step:], strict=True):
            assert torch.equal(images, expected_images) and torch.equal(labels, expected_labels)


def test_every_test_image_belongs_to_one_rank(streamed: StreamedDataset, whole: Dataset) -> None:
    for world_size in (1, 3):
        feeds = [StreamFeed(streamed, CONFIG, rank, world_size, CPU) for rank in range(world_size)]
        batches = [batch for feed in feeds for batch in feed.evaluation_batches("test")]
        assert torch.equal(torch.cat([images for images, _ in batches]), torch.from_numpy(whole.test.images))
        assert torch.equal(torch.cat([labels for _, labels in batches]), torch.from_numpy(whole.test.labels))


@pytest.mark.usefixtures("ray_cluster")
def test_validation_images_never_appear_in_training(tiny_data: Path, tmp_path: Path) -> None:
    for split in ("train", "test"):
        pq.write_table(pq.read_table(tiny_data / f"{split}.parquet"), tmp_path / f"{split}.parquet", row_group_size=50)
    # Without augmentation, an image is the same in every epoch.
    config = TrainConfig(num_workers=2, batch_size=18, seed=3, augment_shift=0, cutout=0)
    dataset = open_stream(find_source(str(tmp_path), ""), 32, 0.25, config.seed)
    expected = load_dataset(find_source(str(tmp_path), ""), 32, 0.25, config.seed)
    assert expected.validation is not None
    for world_size in (1, 3):
        feeds = [StreamFeed(dataset, config, rank, world_size, CPU) for rank in range(world_size)]
        training = contents(batch for feed in feeds for batch in feed.train_batches(0, 0))
        validation = contents(batch for feed in feeds for batch in feed.evaluation_batches("validation"))
        assert len(training) == 180 and len(validation) == 60 and not {*training} & {*validation}
        assert sorted(training) == sorted(image.tobytes() for image in expected.train.images)
        assert validation == [image.tobytes() for image in expected.validation.images]


def contents(batches: Iterable[Batch]) -> list[bytes]:
    return [image.numpy().tobytes() for images, _ in batches for image in images]


def test_waiting_to_decode_takes_little_cpu_time(streamed: StreamedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    # Almost no room for decoded images.
    monkeypatch.setattr(stream_feed, "STORE_SHARE", 1e-6)
    batches = StreamFeed(streamed, CONFIG, 0, 1, CPU).train_batches(0, 0)
    next(batches)
    started = time.process_time()
    time.sleep(4)
    assert time.process_time() - started < 2
    assert len(list(batches)) == 15
