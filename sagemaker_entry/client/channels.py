"""The data channel of a job."""

import secrets
import time
from typing import TYPE_CHECKING, Any

from sagemaker_entry.client.settings import JobConfig
from sagemaker_entry.contract import DATA_CHANNEL
from vgg_ddp.run.storage import absolute

if TYPE_CHECKING:
    from sagemaker.train.model_trainer import ModelTrainer


def check_data(config: JobConfig) -> None:
    """Check a local data folder before it is uploaded.

    Raises:
        UsageError: if the folder does not exist, or lacks the Parquet files of a split.
    """
    if config.has_own_data and not config.data.startswith("s3://"):
        from vgg_ddp.data.layout import find_layout

        find_layout(config.data)


def create_channels(trainer: "ModelTrainer", config: JobConfig) -> list[Any]:
    """The SDK's channel for --data, if that is a folder or URI. A local folder is uploaded to a new prefix."""
    if not config.has_own_data:
        return []
    if config.data.startswith("s3://"):
        # Without the slash, my-images would also match my-images-64.
        return [trainer.create_input_data_channel(DATA_CHANNEL, config.data.rstrip("/") + "/")]
    prefix = f"{config.job_prefix}/data/{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
    return [trainer.create_input_data_channel(DATA_CHANNEL, absolute(config.data), key_prefix=prefix)]
