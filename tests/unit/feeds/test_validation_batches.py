"""Batches of images in memory with a validation split; those of streamed images are in tests/ray."""

import hashlib
from collections import Counter
from collections.abc import Iterable

import pytest
import torch
from torch import Tensor

from vgg_ddp.config import TrainConfig
from vgg_ddp.data.dataset import Dataset, load_dataset
from vgg_ddp.data.source import find_source
from vgg_ddp.feeds.host_feed import HostFeed
from vgg_ddp.feeds.memory_feed import MemoryFeed

CPU = torch.device("cpu")
# Without augmentation, an image is the same in every epoch.
CONFIG = TrainConfig(batch_size=450, augment_shift=0, cutout=0, validation_fraction=0.1, seed=3)
Digests = Counter[str]


def digests(batches: Iterable[tuple[Tensor, Tensor]]) -> Digests:
    return Counter(hashlib.sha256(image.numpy().tobytes()).hexdigest() for images, _ in batches for image in images)


@pytest.fixture(scope="module")
def splits() -> dict[str, Digests]:
    """The digests of the sample's images."""
    whole = load_dataset(find_source("sample", ""), 32)
    return {
        name: digests([(torch.from_numpy(split.images), torch.empty(0))])
        for name, split in (("train", whole.train), ("test", whole.test))
    }


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return load_dataset(find_source("sample", ""), 32, CONFIG.validation_fraction, CONFIG.seed)


@pytest.mark.parametrize("kind", [MemoryFeed, HostFeed])
@pytest.mark.parametrize("world_size", [1, 3])
def test_validation_images_never_appear_in_training(
    kind: type[MemoryFeed | HostFeed], world_size: int, dataset: Dataset, splits: dict[str, Digests]
) -> None:
    feeds = [kind(dataset, CONFIG, rank, world_size, CPU) for rank in range(world_size)]
    validation = digests(batch for feed in feeds for batch in feed.evaluation_batches("validation"))
    assert validation.total() == 500
    for epoch in range(2):
        training = digests(batch for feed in feeds for batch in feed.train_batches(epoch, 0))
        assert training.total() == 4500 and not training & validation
        # Each image of the training split is in one of the two, once.
        assert training + validation == splits["train"]
    assert digests(batch for feed in feeds for batch in feed.evaluation_batches("test")) == splits["test"]
