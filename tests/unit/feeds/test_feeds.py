"""Batches of images that stay in host memory, compared with those of images on the device."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from vgg_ddp.config import TrainConfig
from vgg_ddp.data.dataset import Dataset, Split
from vgg_ddp.feeds.feed import evaluation_batch, slices
from vgg_ddp.feeds.host_feed import HostFeed
from vgg_ddp.feeds.memory_feed import MemoryFeed

CPU, GPU = torch.device("cpu"), torch.device("cuda")
CONFIG = TrainConfig(num_workers=2, batch_size=14, cutout=9, seed=3)
Batch = tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """100 training and 1,203 test images."""
    generator = np.random.default_rng(0)

    def split(count: int) -> Split:
        images = generator.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        # As in Ray's object store.
        images.flags.writeable = False
        return Split(images, generator.integers(0, 10, count))

    mean, std = (120.0, 115.0, 110.0), (60.0, 55.0, 50.0)
    return Dataset("images", split(100), split(1203), tuple("abcdefghij"), mean, std)


def assert_equal(batches: list[Batch], expected: list[Batch]) -> None:
    assert len(batches) == len(expected)
    for pair, expected_pair in zip(batches, expected, strict=True):
        for values, expected_values in zip(pair, expected_pair, strict=True):
            assert torch.equal(values, expected_values)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("read", [lambda feed: feed.train_batches(0, 0), lambda feed: feed.evaluation_batches("test")])
def test_images_in_host_memory_give_the_same_batches(dataset: Dataset, rank: int, read: Callable[..., object]) -> None:
    host, memory = (list(read(kind(dataset, CONFIG, rank, 2, CPU))) for kind in (HostFeed, MemoryFeed))
    assert len(host) > 1
    assert_equal(host, memory)


def test_images_in_host_memory_resume_in_the_middle_of_an_epoch(dataset: Dataset) -> None:
    feed = HostFeed(dataset, CONFIG, 1, 2, CPU)
    first_epoch, second_epoch = list(feed.train_batches(0, 0)), list(feed.train_batches(1, 0))
    assert len(first_epoch) == len(second_epoch) == 7
    assert not torch.equal(first_epoch[0][0], second_epoch[0][0])
    assert_equal(list(feed.train_batches(1, 4)), second_epoch[4:])


def test_plan_keeps_its_memory_from_epoch_to_epoch(dataset: Dataset) -> None:
    feed = MemoryFeed(dataset, CONFIG, 0, 1, CPU)
    feed.start_epoch(0)
    assert feed.plan is not None
    tensors = (feed.plan.order, feed.plan.flip, feed.plan.shift, feed.plan.cutout_position)
    before = [(values.data_ptr(), values.clone()) for values in tensors]
    feed.start_epoch(1)
    after = (feed.plan.order, feed.plan.flip, feed.plan.shift, feed.plan.cutout_position)
    for (address, values), now in zip(before, after, strict=True):
        assert now.data_ptr() == address and not torch.equal(now, values)


def test_batches_on_the_cpu_are_parts_of_the_images_themselves(dataset: Dataset) -> None:
    for feed in (MemoryFeed(dataset, CONFIG, 0, 1, CPU), HostFeed(dataset, CONFIG, 0, 1, CPU)):
        (images, _), *_ = feed.evaluation_batches("test")
        assert images.data_ptr() == dataset.test.images.ctypes.data
        assert feed.images_on == "host memory"


@pytest.mark.parametrize(
    ("device", "image_size", "count"),
    [(CPU, 32, 500), (CPU, 224, 500), (GPU, 16, 2500), (GPU, 32, 2500), (GPU, 48, 1111), (GPU, 224, 500)],
)
def test_gpus_evaluate_larger_batches_of_small_images(device: torch.device, image_size: int, count: int) -> None:
    assert evaluation_batch(device, image_size) == count


def test_slices_cover_a_range_once() -> None:
    assert list(slices(range(3, 10), 3)) == [slice(3, 6), slice(6, 9), slice(9, 10)]
    assert list(slices(range(3, 3), 3)) == []
