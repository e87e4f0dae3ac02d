"""Choose the feed of a rank: by how images are ingested, and whether they fit in the memory of its GPU."""

import torch

from vgg_ddp.config import TrainConfig
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.data.streamed_dataset import StreamedDataset
from vgg_ddp.feeds.feed import Feed
from vgg_ddp.feeds.host_feed import HostFeed
from vgg_ddp.feeds.memory_feed import MemoryFeed

# The rest is for activations.
GPU_SHARE = 0.5


def image_bytes(dataset: Dataset) -> int:
    """Size of the images of all splits."""
    return sum(split.images.nbytes for split in (dataset.train, dataset.validation, dataset.test) if split)


def fits_on(device: torch.device, dataset: Dataset | StreamedDataset) -> bool:
    """Whether decoded images take at most half of the memory that the GPU has left; True on a CPU, and for a stream."""
    if device.type == "cpu" or not isinstance(dataset, Dataset):
        return True
    free_bytes, _ = torch.cuda.mem_get_info(device)
    return image_bytes(dataset) <= GPU_SHARE * free_bytes


def make_feed(
    dataset: Dataset | StreamedDataset,
    config: TrainConfig,
    rank: int,
    world_size: int,
    device: torch.device,
    fits: bool,
) -> Feed:
    """The feed of a rank; `fits` is the result of `fits_on`."""
    if isinstance(dataset, Dataset):
        return (MemoryFeed if fits else HostFeed)(dataset, config, rank, world_size, device)
    # Importing Ray Data is slow.
    from vgg_ddp.feeds.stream_feed import StreamFeed

    return StreamFeed(dataset, config, rank, world_size, device)
