"""The file in which a run records what it chose."""

from pathlib import Path

from vgg_ddp.config import TrainConfig
from vgg_ddp.run.chosen import write_chosen
from vgg_ddp.run.storage import Folder


def write_choices(run: Folder | Path, config: TrainConfig, **others: object) -> None:
    """Write chosen.json as a run of two CPU workers with these settings does; `others` differ."""
    device = others.get("device", "cpu")
    chosen: dict[str, object] = {
        "model": "VGG11",
        "device": device,
        "device_name": "a processor",
        "precision": "fp32",
        "tf32": False,
        "cuda_graphs": False,
        "fast_convolutions": device == "cpu" and config.fast_convolutions,
        "world_size": 2,
        "ingest": config.ingest,
        "images": "0123",
        "images_on": "host memory",
        "global_batch_size": config.global_batch,
    }
    write_chosen(run if isinstance(run, Folder) else Folder.at(str(run)), chosen | others)
