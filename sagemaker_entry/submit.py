"""Submit a training or tuning job: python sagemaker_entry/submit.py --role ARN --instance-type ml.g5.12xlarge ...

Exit codes: 0 the job is completed (or submitted, with --no-wait); 1 it failed or was stopped, AWS refused it, or
it cannot be waited for any longer; 2 the input cannot be used; 130 after Ctrl-C, and the job goes on.
"""

import json
import secrets
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "ray_app"))

from hosts import COORDINATOR_GROUP
from job import encode
from settings import PROGRAM, JobConfig, check_role, hyperparameters
from vgg_ddp.flags import UsageError, parse_flags, quit_with_usage_error
from vgg_ddp.output import outlive_readers

if TYPE_CHECKING:
    from sagemaker.train.model_trainer import ModelTrainer

# exec: SageMaker's SIGTERM reaches only PID 1, which would be bash else.
COMMAND = "exec python sagemaker_entry/launch.py"
# Also the script for the tuner, whose jobs start the image's own toolkit.
SCRIPT = "sagemaker_entry/launch.py"
# SDK 3.27 lists SageMaker's newest PyTorch images under this name.
IMAGE_FRAMEWORK, IMAGE_VERSION, IMAGE_PYTHON = "pytorch-amzn2023", "2.14", "py312"
WORKER_GROUP = "workers"
# From the lines of `vgg_ddp.report.format_row`; accuracies are percentages.
METRICS = {
    "train_loss": r"epoch +\d+/\d+ .*loss ([0-9.]+)",
    "train_accuracy": r"epoch +\d+/\d+ .*train +([0-9.]+)%",
    "test_accuracy": r"epoch +\d+/\d+ .*test +([0-9.]+)%",
    "epoch_seconds": r"epoch +\d+/\d+ .*images/s +([0-9.]+) s",
}
OBJECTIVE = "test_accuracy"


def build_trainer(config: JobConfig, arguments: list[str], source: Path, session: Any) -> "ModelTrainer":
    """The SDK's trainer for these settings, with its source code staged in a folder."""
    from sagemaker.train.configs import (
        CheckpointConfig,
        Compute,
        InstanceGroup,
        MetricDefinition,
        Networking,
        OutputDataConfig,
        RetryStrategy,
        SourceCode,
        StoppingCondition,
        Tag,
    )
    from sagemaker.train.model_trainer import ModelTrainer

    base = f"s3://{session.default_bucket()}/{config.job_prefix}"
    checkpoints = config.checkpoint_uri or f"{base}/checkpoints/{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
    values = hyperparameters(config, arguments)
    if config.instance_count > 1 or config.coordinator_instance_type:
        # /opt/ml/checkpoints is another folder on each machine.
        values["storage-path"] = checkpoints
    if config.coordinator_instance_type:
        groups = [
            InstanceGroup(
                instance_group_name=COORDINATOR_GROUP, instance_type=config.coordinator_instance_type, instance_count=1
            ),
            InstanceGroup(
                instance_group_name=WORKER_GROUP,
                instance_type=config.instance_type,
                instance_count=config.instance_count,
            ),
        ]
        machines: dict[str, Any] = {"instance_groups": groups}
    else:
        machines = {"instance_type": config.instance_type, "instance_count": config.instance_count}
    stopping = {"max_runtime_in_seconds": config.max_run_seconds}
    if config.spot:
        stopping["max_wait_time_in_seconds"] = config.max_wait_seconds or 2 * config.max_run_seconds
    trainer = ModelTrainer(
        sagemaker_session=session,
        role=check_role(config.role),
        base_job_name=config.job_prefix,
        training_image=config.image or find_image(session.boto_region_name, config.instance_type),
        source_code=SourceCode(
            source_dir=str(source), requirements="requirements.txt", command=COMMAND, entry_script=SCRIPT
        ),
        compute=Compute(
            **machines,
            volume_size_in_gb=config.volume_gb,
            **_given(volume_kms_key_id=config.volume_kms_key, keep_alive_period_in_seconds=config.keep_alive_seconds),
            enable_managed_spot_training=config.spot,
        ),
        stopping_condition=StoppingCondition(**stopping),
        output_data_config=OutputDataConfig(s3_output_path=base, **_given(kms_key_id=config.kms_key)),
        networking=Networking(
            **_given(subnets=list(config.subnets), security_group_ids=list(config.security_groups)),
            enable_inter_container_traffic_encryption=config.encrypt_traffic,
        ),
        environment={"VGG_JOIN_SECONDS": str(config.join_seconds)},
        hyperparameters={name: encode(value) for name, value in values.items()},
        tags=[Tag(key=key, value=value) for key, _, value in (tag.partition("=") for tag in config.tags)] or None,
    )
    trainer = trainer.with_checkpoint_config(CheckpointConfig(s3_uri=checkpoints))
    trainer = trainer.with_metric_definitions([MetricDefinition(name=n, regex=r) for n, r in METRICS.items()])
    if config.retries:
        trainer = trainer.with_retry_strategy(RetryStrategy(maximum_retry_attempts=config.retries))
    return trainer


def _given(**values: Any) -> dict[str, Any]:
    """Those of the settings that have a value: the SDK takes None for one."""
    return {name: value for name, value in values.items() if value}


def find_image(region: str, instance_type: str) -> str:
    """SageMaker's own PyTorch image for training.

    Raises:
        UsageError: if the SDK knows none.
    """
    from sagemaker.core import image_uris

    try:
        uri: str = image_uris.retrieve(
            IMAGE_FRAMEWORK,
            region,
            version=IMAGE_VERSION,
            instance_type=instance_type,
            image_scope="training",
            py_version=IMAGE_PYTHON,
        )
    except ValueError as error:
        raise UsageError(f"no training image is known for {region} ({error}): give --image.") from error
    return uri


def describe(config: JobConfig) -> str:
    """What the job may cost at most: machines and hours."""
    machines = f"{config.instance_count} x {config.instance_type}"
    if config.coordinator_instance_type:
        machines = f"1 x {config.coordinator_instance_type} + {machines}"
    text = f"{machines}, at most {config.max_run_seconds / 3600:g} h"
    if config.spot:
        wait = config.max_wait_seconds or 2 * config.max_run_seconds
        text += f" on spot instances, waiting included at most {wait / 3600:g} h"
    if config.keep_alive_seconds:
        text += f", then kept (and paid) for up to {config.keep_alive_seconds} s more"
    return f"{config.max_jobs} jobs, {config.parallel_jobs} at a time, each {text}" if config.tune else text


def check_data(config: JobConfig) -> None:
    """Check local data before it is uploaded.

    Raises:
        UsageError: if there is no such folder, or no Parquet file of a split in it.
    """
    if config.has_own_data and not config.data.startswith("s3://"):
        from vgg_ddp.parquet import find_files

        for split in ("train", "test"):
            find_files(config.data, split)


def submit(config: JobConfig, arguments: list[str]) -> None:
    """Submit the job and, if asked to, wait for its end."""
    from channels import create_channel
    from session import NotCompletedError, open_session
    from staging import stage
    from waiting import JobLog, follow, submitting, watching

    check_data(config)
    print(f"Machines:  {describe(config)}", flush=True)
    session = open_session(config)
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(config, arguments, stage(Path(folder) / "source"), session)
        print(f"Image:     {trainer.training_image}")
        print(f"Storage:   {trainer.checkpoint_config.s3_uri}", flush=True)
        if config.tune:
            from tuning import tune

            tune(config, trainer, METRICS, OBJECTIVE)
            return
        data = []
        if config.has_own_data:
            data = [create_channel(trainer, config)]
        with submitting():
            trainer.train(input_data_config=data, wait=False, logs=False)
    job = trainer._latest_training_job
    print(f"Job:       {job.training_job_name}", flush=True)
    if config.wait:
        with watching():
            follow(job, JobLog(session.boto_session.client("logs"), job.training_job_name))
        print(f"Status:    {job.training_job_status}", flush=True)
        if job.training_job_status != "Completed":
            why = job.failure_reason or job.secondary_status
            raise NotCompletedError(f"the job ended before it was completed: {why}")
        print(f"Model:     {job.model_artifacts.s3_model_artifacts}")


def main() -> int:
    arguments = sys.argv[1:]
    try:
        config = parse_flags(JobConfig, arguments, PROGRAM)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        from session import ERRORS, DryRunError

        try:
            submit(config, arguments)
        except DryRunError as request:
            print(json.dumps(request.request, indent=2))
        except ERRORS as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    except UsageError as error:
        quit_with_usage_error(error)
    except KeyboardInterrupt:
        print("\nStopped waiting; a job that was submitted goes on.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    outlive_readers()
    sys.exit(main())
