"""What a run begins with; whether its images are decoded before training, or while it goes on."""

from dataclasses import dataclass
from typing import Literal

from vgg_ddp.config import TrainConfig
from vgg_ddp.data import SPLITS, Dataset, Source, load_dataset
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
        UsageError: if they cannot be streamed, but are to be.
    """
    if config.ingest == "stream":
        if config.num_workers == 0:
            raise UsageError("--ingest stream needs a Ray cluster to decode images: use --num-workers 1 or more.")
        if source.kind != "parquet":
            raise UsageError("--ingest stream reads Parquet files only; CIFAR-10 as it is downloaded fits into memory.")
    if config.ingest != "auto":
        return config.ingest
    if config.num_workers == 0 or source.kind != "parquet":
        return "memory"
    fits = decoded_bytes(source, config.image_size) <= SHARE_OF_MEMORY * available_memory_bytes()
    return "memory" if fits else "stream"


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
    """Memory that the images of a Parquet source take once they are decoded.

    Raises:
        UsageError: naming the file that cannot be read.
    """
    images = 0
    for split in SPLITS:
        folder, files = find_files(source.location, split)
        images += sum(look_at_files(folder, files, lambda parquet: int(parquet.file.metadata.num_rows)))
    return images * image_size**2 * 3
