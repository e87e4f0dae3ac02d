"""Load the images and initial weights of a run; choose whether images are decoded before or during training."""

from dataclasses import replace
from typing import Literal

from vgg_ddp.config import TrainConfig
from vgg_ddp.data.dataset import load_dataset
from vgg_ddp.data.digest import data_digest
from vgg_ddp.data.parquet import scan_files
from vgg_ddp.data.source import CIFAR10_IMAGES, Source
from vgg_ddp.data.streamed_dataset import open_stream
from vgg_ddp.flags import UsageError
from vgg_ddp.job import Inputs
from vgg_ddp.machine import torchrun
from vgg_ddp.machine.limits import available_memory_bytes
from vgg_ddp.run.runs import Run, Settings
from vgg_ddp.weights.pretrained import read_pretrained

Ingest = Literal["memory", "stream"]
# Decoded images are briefly in the driver's memory twice, and Ray's object store gets 30 % of the memory.
SHARE_OF_MEMORY = 0.25


def choose_ingest(config: TrainConfig, source: Source) -> Ingest:
    """The value of --ingest; for auto, stream images if decoding all of them would take too much memory.

    Raises:
        UsageError: if streaming is requested but not possible, or if the decoded images do not fit in memory.
    """
    if config.ingest == "stream":
        if config.num_workers == 0:
            raise UsageError("--ingest stream requires a Ray cluster to decode images: use --num-workers 1 or more.")
        if source.kind != "parquet":
            raise UsageError("--ingest stream reads only Parquet files, not the CIFAR-10 download.")
        return "stream"
    size, left = decoded_bytes(source, config.image_size), available_memory_bytes()
    if (
        config.ingest == "auto"
        and config.num_workers != 0
        and source.kind == "parquet"
        and size > SHARE_OF_MEMORY * left
    ):
        return "stream"
    # Each of torchrun's processes decodes all images for itself.
    size *= torchrun.local_world_size()
    if size > left:
        ways = ["a smaller --image-size"]
        if source.kind == "parquet":
            ways.insert(
                0, "--num-workers 1 or more, without torchrun" if config.num_workers == 0 else "--ingest stream"
            )
        raise UsageError(
            f"decoded to --image-size {config.image_size}, the images of {source.name} take {size / 1e9:,.1f} GB of "
            f"memory, but this machine has {left / 1e9:,.1f} GB available: use {', or '.join(ways)}."
        )
    return "memory"


def settle_data(config: Settings, source: Source) -> Settings:
    """The settings without `auto` for the data and its ingest, so that a resume uses the same.

    Raises:
        UsageError: as `choose_ingest`.
    """
    data = config.data
    if data == "auto":
        data = "cifar10" if source.kind == "cifar10" else "sample"
    config = replace(config, data=data)
    return replace(config, ingest=choose_ingest(config, source))


def load(run: Run, source: Source) -> Inputs:
    """Load the images and weights that a run's settings name; `ingest` must not be auto.

    Raises:
        UsageError: naming the invalid input.
    """
    config, pretrained = run.config, None
    # A run that resumes from a checkpoint does not need its initial weights, which may no longer exist.
    if config.init_from and not run.has_checkpoint():
        pretrained = read_pretrained(config.init_from, config.recipe)
    digest = data_digest(source)
    run.require_same_images(digest)
    open_dataset = open_stream if config.ingest == "stream" else load_dataset
    dataset = open_dataset(source, config.image_size, config.validation_fraction, config.seed)
    return Inputs(dataset, pretrained, digest)


def decoded_bytes(source: Source, image_size: int) -> int:
    """Size in memory of the decoded images of both splits.

    Raises:
        UsageError: naming the file that cannot be read.
    """
    bytes_each = image_size**2 * 3
    if source.layout is None:
        return CIFAR10_IMAGES * bytes_each
    splits = filter(None, (source.layout.train, source.test_split))
    files = [file for split in splits for file in split.files]
    rows = scan_files(source.layout.folder, files, source.columns, lambda parquet: sum(parquet.row_groups))
    return sum(rows) * bytes_each
