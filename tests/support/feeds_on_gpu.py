"""Compare the batches of all feeds on a fake GPU with those on the CPU, and count what they cost; print both as JSON.

    python tests/support/feeds_on_gpu.py FOLDER_OF_IMAGES

The counts are copies, synchronizations, and allocations: until the first batch of an epoch is there, for the third and
later ones together, and in an evaluation.
"""

import json
import sys
from typing import Any

import ray
import torch

from fake_cuda import counts
from vgg_ddp.config import TrainConfig
from vgg_ddp.data.dataset import load_dataset
from vgg_ddp.data.source import find_source
from vgg_ddp.data.streamed_dataset import open_stream
from vgg_ddp.feeds.feed import Feed
from vgg_ddp.feeds.host_feed import HostFeed
from vgg_ddp.feeds.memory_feed import MemoryFeed
from vgg_ddp.feeds.stream_feed import StreamFeed

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
CONFIG = TrainConfig(num_workers=2, batch_size=24, cutout=9, seed=3)
KINDS = {"memory": (MemoryFeed, MemoryFeed), "host": (HostFeed, MemoryFeed), "stream": (StreamFeed, StreamFeed)}


def all_batches(feed: Feed) -> list[torch.Tensor]:
    """Two epochs, the second one from its fourth step, and the test images; on the CPU."""
    read = [*feed.train_batches(0, 0), *feed.train_batches(1, 3), *feed.evaluation_batches("test")]
    return [values.cpu() for batch in read for values in batch]


def count_batches(feed: Feed) -> dict[str, Any]:
    """What the batches of an epoch and of an evaluation cost."""
    batches = feed.train_batches(2, 0)
    with counts.counted() as first:
        next(batches)
    next(batches)
    with counts.counted() as later:
        number = len(list(batches))
    with counts.counted() as evaluation:
        list(feed.evaluation_batches("test"))
    phases = {"first": first, "later": later, "evaluation": evaluation}
    return {"steps": 2 + number} | {
        name: found.starting_with("copy", "sync", "allocate") for name, found in phases.items()
    }


def main() -> None:
    """Compare and count all feeds."""
    ray.init(num_cpus=2, num_gpus=0, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    source = find_source(sys.argv[1], "")
    whole, streamed = load_dataset(source, 32), open_stream(source, 32)
    found = {}
    for name, (kind, kind_on_cpu) in KINDS.items():
        dataset = streamed if name == "stream" else whole
        feeds = [kind(dataset, CONFIG, 1, 2, GPU), kind_on_cpu(dataset, CONFIG, 1, 2, CPU)]
        on_gpu, on_cpu = map(all_batches, feeds)
        pairs = list(zip(on_gpu, on_cpu, strict=True))
        equal = len(pairs) > 30 and all(torch.equal(*pair) for pair in pairs)
        found[name] = {"equal": equal, "images_on": feeds[0].images_on} | count_batches(feeds[0])
    print(json.dumps(found))


if __name__ == "__main__":
    main()
