"""Builds the SDK's trainer from the settings of a job."""

import dataclasses
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sagemaker_entry.client import sdk
from sagemaker_entry.client.checks.environment import parse_environment
from sagemaker_entry.client.checks.machines import check_batches, have_local_disks
from sagemaker_entry.client.defaults import profiler_config, with_defaults
from sagemaker_entry.client.images import TRAINING_VERSIONS, find_training_image
from sagemaker_entry.client.role import find_role
from sagemaker_entry.client.settings import JobConfig, hyperparameters
from sagemaker_entry.contract import COORDINATOR_GROUP, JOIN_SECONDS, decode, encode
from vgg_ddp.flags import UsageError

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
# The log level WARNING, for what starts launch.py: at INFO, it prints the whole environment, secrets included.
LOG_LEVEL_VARIABLE, LOG_LEVEL = "SM_LOG_LEVEL", "30"


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

    config = _complete(config, session)
    if config.kms_key:
        sdk.encrypt_uploads(session.boto_session, config.kms_key)
    sdk.complete_request(session.boto_session, _fields_that_the_sdk_drops(config, session.sagemaker_config))
    base = "/".join(
        filter(None, (f"s3://{session.default_bucket()}", session.default_bucket_prefix, config.job_prefix))
    )
    checkpoints = config.checkpoint_uri or f"{base}/checkpoints/{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
    values = _job_values(config, arguments, checkpoints)
    trainer = ModelTrainer(
        sagemaker_session=session,
        role=find_role(config.role, session.boto_session),
        # The SDK appends the time in seconds: without random digits, jobs submitted together would share a name.
        base_job_name=f"{config.job_prefix}-{secrets.token_hex(3)}",
        input_s3_key_prefix=config.job_prefix,
        training_image=config.image or _choose_image(config, session.boto_region_name),
        source_code=SourceCode(source_dir=str(source), command=COMMAND, entry_script=SCRIPT),
        compute=_compute(config),
        stopping_condition=_stopping_condition(config),
        output_data_config=OutputDataConfig(s3_output_path=base, **_given(kms_key_id=config.kms_key)),
        networking=Networking(
            **_given(subnets=list(config.subnets), security_group_ids=list(config.security_groups)),
            enable_inter_container_traffic_encryption=config.encrypt_traffic,
            enable_network_isolation=config.network_isolation,
        ),
        environment=parse_environment(config.env)
        | {JOIN_SECONDS: str(config.join_seconds), LOG_LEVEL_VARIABLE: LOG_LEVEL},
        hyperparameters={name: encode(value) for name, value in values.items()},
        tags=[Tag(key=key, value=value) for key, _, value in (tag.partition("=") for tag in config.tags)] or None,
    )
    # Several hosts store checkpoints at the URI themselves. SageMaker copies the local folder of each host elsewhere:
    # with the same URI, every restart would download all checkpoints to every host, and upload deleted ones again.
    synced = f"{checkpoints.rstrip('/')}/hosts" if config.is_shared else checkpoints
    trainer = trainer.with_checkpoint_config(CheckpointConfig(s3_uri=synced))
    trainer = trainer.with_metric_definitions([MetricDefinition(name=n, regex=r) for n, r in METRICS.items()])
    if config.retries:
        trainer = trainer.with_retry_strategy(RetryStrategy(maximum_retry_attempts=config.retries))
    return trainer


def _complete(config: JobConfig, session: Any) -> JobConfig:
    """The settings with the organization's defaults, checked against what the SDK knows of the machines."""
    given, config = config, with_defaults(config, session.sagemaker_config)
    check_batches(config, config.instance_type, config.instance_count, session.boto_region_name)
    if config.volume_kms_key and have_local_disks(config.instance_type, config.coordinator_instance_type):
        reason = (
            f"{config.instance_type} has local disks, which its hardware encrypts; SageMaker accepts no key for them."
        )
        if given.volume_kms_key:
            raise UsageError(f"--volume-kms-key {given.volume_kms_key}: {reason}")
        print(f"NOTE: VolumeKmsKeyId in the SDK's defaults file is not used: {reason}", flush=True)
        config = dataclasses.replace(config, volume_kms_key=None)
    return config


def checkpoint_uri(hyperparameters: Mapping[str, str], synced_uri: str) -> str:
    """The --checkpoint-uri that resumes a job, given its hyperparameters and the URI of its CheckpointConfig."""
    stored = hyperparameters.get("storage-path")
    return decode(stored) if stored else synced_uri


def _job_values(config: JobConfig, arguments: list[str], checkpoints: str) -> dict[str, str]:
    """The hyperparameters before encoding: given flags of main.py, and what every job gets."""
    values = hyperparameters(config, arguments)
    if config.resume and config.data == JobConfig.data:
        # A resumed run keeps its data.
        values.pop("data", None)
    elif not config.has_own_data:
        # Never main.py's own default, which falls back to the sample.
        values["data"] = config.data
    if config.is_shared:
        # /opt/ml/checkpoints is a different folder on each machine.
        values["storage-path"] = checkpoints
    if config.tune:
        # The toolkit that starts trials takes its log level from here.
        values["sagemaker_container_log_level"] = LOG_LEVEL
    return values


def _choose_image(config: JobConfig, region: str) -> str:
    """SageMaker's newest image in a region; says so if it is not the newest one of all."""
    image, version = find_training_image(region, config.instance_type)
    if version != TRAINING_VERSIONS[0]:
        print(f"NOTE: {region} has no image with torch {TRAINING_VERSIONS[0]}: using torch {version}.", flush=True)
    return image


def _fields_that_the_sdk_drops(config: JobConfig, file: dict[str, Any]) -> dict[str, Any]:
    """Fields of the request that the SDK (3.27) has no setting for, or that its tuner drops."""
    if not config.tune:
        return profiler_config(file)
    fields: dict[str, Any] = {
        "EnableInterContainerTrafficEncryption": config.encrypt_traffic,
        "EnableNetworkIsolation": config.network_isolation,
        "ResourceConfig": _given(VolumeKmsKeyId=config.volume_kms_key) or None,
    }
    return {name: value for name, value in fields.items() if value is not None}


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
