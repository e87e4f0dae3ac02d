"""Builds the SDK's trainer from the settings of a job."""

import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sagemaker_entry.client.images import TRAINING, find_image
from sagemaker_entry.client.settings import JobConfig, check_role, hyperparameters
from sagemaker_entry.contract import COORDINATOR_GROUP, JOIN_SECONDS, encode

if TYPE_CHECKING:
    from sagemaker.core.training.configs import Compute, StoppingCondition
    from sagemaker.train.model_trainer import ModelTrainer

# The tuner runs this file with the image's toolkit instead of COMMAND.
SCRIPT = "sagemaker_entry/launch.py"
# With exec, because otherwise PID 1 is bash, which does not forward SageMaker's SIGTERM.
COMMAND = f"exec python {SCRIPT}"
WORKER_GROUP = "workers"
# Match the lines of format_row and format_test in vgg_ddp.run.summary; accuracies are percentages. With a validation
# split, a job has one test accuracy, at its end.
METRICS = {
    "train_loss": r"epoch +\d+/\d+ .*loss ([0-9.]+)",
    "train_accuracy": r"epoch +\d+/\d+ .*train +([0-9.]+)%",
    "validation_accuracy": r"epoch +\d+/\d+ .*validation +([0-9.]+)%",
    "test_accuracy": r"epoch +\d+/\d+ .*test +([0-9.]+)%",
    "epoch_seconds": r"epoch +\d+/\d+ .*images/s +([0-9.]+) s",
}
OBJECTIVE = "validation_accuracy"


def build_trainer(config: JobConfig, arguments: list[str], source: Path, session: Any) -> "ModelTrainer":
    """The SDK's trainer for these settings.

    Args:
        config: the settings.
        arguments: the command line; only flags given there become hyperparameters.
        source: folder with the staged source code.
        session: the SDK's session.
    """
    from sagemaker.core.training.configs import (
        CheckpointConfig,
        MetricDefinition,
        Networking,
        OutputDataConfig,
        RetryStrategy,
        SourceCode,
        Tag,
    )
    from sagemaker.train.model_trainer import ModelTrainer

    base = f"s3://{session.default_bucket()}/{config.job_prefix}"
    checkpoints = config.checkpoint_uri or f"{base}/checkpoints/{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
    values = hyperparameters(config, arguments)
    if config.instance_count > 1 or config.coordinator_instance_type:
        # /opt/ml/checkpoints is a different folder on each machine.
        values["storage-path"] = checkpoints
    trainer = ModelTrainer(
        sagemaker_session=session,
        role=check_role(config.role),
        base_job_name=config.job_prefix,
        training_image=config.image or find_image(TRAINING, session.boto_region_name, config.instance_type),
        source_code=SourceCode(source_dir=str(source), command=COMMAND, entry_script=SCRIPT),
        compute=_compute(config),
        stopping_condition=_stopping_condition(config),
        output_data_config=OutputDataConfig(s3_output_path=base, **_given(kms_key_id=config.kms_key)),
        networking=Networking(
            **_given(subnets=list(config.subnets), security_group_ids=list(config.security_groups)),
            enable_inter_container_traffic_encryption=config.encrypt_traffic,
        ),
        # The SDK's script in the container prints all environment variables, unless its log level is higher.
        environment={JOIN_SECONDS: str(config.join_seconds), "SM_LOG_LEVEL": "30"},
        hyperparameters={name: encode(value) for name, value in values.items()},
        tags=[Tag(key=key, value=value) for key, _, value in (tag.partition("=") for tag in config.tags)] or None,
    )
    trainer = trainer.with_checkpoint_config(CheckpointConfig(s3_uri=checkpoints))
    trainer = trainer.with_metric_definitions([MetricDefinition(name=n, regex=r) for n, r in METRICS.items()])
    if config.retries:
        trainer = trainer.with_retry_strategy(RetryStrategy(maximum_retry_attempts=config.retries))
    return trainer


def _compute(config: JobConfig) -> "Compute":
    """The job's machines: one group, or two if there is a coordinator."""
    from sagemaker.core.training.configs import Compute, InstanceGroup

    machines: dict[str, Any] = {"instance_type": config.instance_type, "instance_count": config.instance_count}
    if config.coordinator_instance_type:
        coordinator = {"instance_type": config.coordinator_instance_type, "instance_count": 1}
        groups = [(COORDINATOR_GROUP, coordinator), (WORKER_GROUP, machines)]
        machines = {"instance_groups": [InstanceGroup(instance_group_name=name, **group) for name, group in groups]}
    return Compute(
        **machines,
        volume_size_in_gb=config.volume_gb,
        **_given(volume_kms_key_id=config.volume_kms_key, keep_alive_period_in_seconds=config.keep_alive_seconds),
        enable_managed_spot_training=config.spot,
    )


def _stopping_condition(config: JobConfig) -> "StoppingCondition":
    from sagemaker.core.training.configs import StoppingCondition

    limits = {"max_runtime_in_seconds": config.max_run_seconds}
    if config.spot:
        limits["max_wait_time_in_seconds"] = config.spot_wait_seconds
    return StoppingCondition(**limits)


def _given(**values: Any) -> dict[str, Any]:
    """Drop unset settings, since the SDK would send None as a value."""
    return {name: value for name, value in values.items() if value}
