"""The channel of a job's own data."""

import secrets
import time
from typing import TYPE_CHECKING, Any

from job import DATA_CHANNEL
from settings import JobConfig
from vgg_ddp.storage import absolute

if TYPE_CHECKING:
    from sagemaker.train.model_trainer import ModelTrainer


def create_channel(trainer: "ModelTrainer", config: JobConfig) -> Any:
    """The SDK's channel for --data: an S3 URI as it is, a local folder uploaded to a place of its own."""
    if config.data.startswith("s3://"):
        # Without the slash, my-images would also name what lies in my-images-64.
        return trainer.create_input_data_channel(DATA_CHANNEL, config.data.rstrip("/") + "/")
    prefix = f"{config.job_prefix}/data/{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
    return trainer.create_input_data_channel(DATA_CHANNEL, absolute(config.data), key_prefix=prefix)
