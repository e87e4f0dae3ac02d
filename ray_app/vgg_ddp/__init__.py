"""VGG11 with PyTorch DDP under Ray Train: the package that Ray ships to every worker."""

from vgg_ddp.api import train
from vgg_ddp.config import TrainConfig
from vgg_ddp.flags import UsageError
from vgg_ddp.result import RunResult

__all__ = ["RunResult", "TrainConfig", "UsageError", "train"]
