"""What a run begins with; whether its images are decoded before training, or while it goes on."""

from dataclasses import dataclass
from typing import Literal

from vgg_ddp import torchrun
from vgg_ddp.config import TrainConfig
from vgg_ddp.data import CIFAR10_IMAGES, SPLITS, Dataset, Source, load_dataset
from vgg_ddp.flags import UsageError
from vgg_ddp.limits import available_memory_bytes
from vgg_ddp.parquet import find_files, look_at_files
from vgg_ddp.pretrained import Pretrained, read_pretrained
from vgg_ddp.runs import Run
from vgg_ddp.stream import StreamedDataset, open_stream

Ingest = Literal["memory", "stream"]


@dataclass(frozen=True)
class Inputs:
    """What a run begins with: images, and perhaps weights."""

    dataset: Dataset | StreamedDataset
    pretrained: Pretrained | None = None


# Decoded images are twice in the memory of the driver's machine for a moment, and Ray's object store has 30 % of it.
SHARE_OF_MEMORY = 0.25


def choose_ingest(config: TrainConfig, source: Source) -> Ingest:
    """What --ingest says, or what fits: images are streamed if all of them decoded would take too much memory.

    Raises:
        UsageError: if they cannot be streamed, but are to be; or cannot fit into memory, but have to.
    """
    if config.ingest == "stream":
        if config.num_workers == 0:
            raise UsageError("--ingest stream needs a Ray cluster to decode images: use --num-workers 1 or more.")
        if source.kind != "parquet":
            raise UsageError("--ingest stream reads Parquet files only, not CIFAR-10 as it is downloaded.")
        return "stream"
    size, left = decoded_bytes(source, config.image_size), available_memory_bytes()
    if config.ingest == "auto" and config.num_workers and source.kind == "parquet" and size > SHARE_OF_MEMORY * left:
        return "stream"
    # Each of torchrun's processes decodes all images.
    size *= torchrun.local_world_size()
    if size > left:
        ways = ["a smaller --image-size"]
        if source.kind == "parquet":
            ways.insert(0, "--ingest stream" if config.num_workers else "--num-workers 1 or more, without torchrun")
        raise UsageError(
            f"the images of {source.name} take {size / 1e9:,.1f} GB of memory once they are decoded to --image-size "
            f"{config.image_size}, and this machine has {left / 1e9:,.1f} GB left: use {', or '.join(ways)}."
        )
    return "memory"


def load(run: Run, source: Source) -> Inputs:
    """Load what the settings of a run name, of which `ingest` is chosen.

    Raises:
        UsageError: naming what cannot be used.
    """
    config, pretrained = run.config, None
    # The weights that a run began with may be gone when it is resumed from a checkpoint.
    if config.init_from and not run.has_checkpoint():
        pretrained = read_pretrained(config.init_from, config.recipe == "fast")
    open_dataset = open_stream if config.ingest == "stream" else load_dataset
    return Inputs(open_dataset(source, config.image_size), pretrained)


def decoded_bytes(source: Source, image_size: int) -> int:
    """Memory that the images of both splits take once they are decoded.

    Raises:
        UsageError: naming the file that cannot be read.
    """
    bytes_each = image_size**2 * 3
    if source.kind == "cifar10":
        return CIFAR10_IMAGES * bytes_each
    images = 0
    for split in SPLITS:
        folder, files = find_files(source.location, split)
        images += sum(look_at_files(folder, files, lambda parquet: int(parquet.file.metadata.num_rows)))
    return images * bytes_each
