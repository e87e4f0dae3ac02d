"""The settings of an earlier job, from SageMaker's description of it."""

import re
from typing import Any, get_type_hints

from sagemaker_entry.client.settings import JobConfig
from sagemaker_entry.client.trainer import LOG_LEVEL_VARIABLE, checkpoint_uri
from sagemaker_entry.contract import COORDINATOR_GROUP, DATA_CHANNEL, JOIN_SECONDS, decode
from vgg_ddp.flags import UsageError, parse_value

# Settings of main.py that follow from those of the job, or that name the run.
DERIVED = ("storage_path", "run_name", "resume")


def run_settings(job: dict[str, Any]) -> dict[str, str]:
    """The settings of main.py that the job was given, by field of TrainConfig, as strings."""
    return {
        name.replace("-", "_"): decode(value)
        for name, value in job.get("HyperParameters", {}).items()
        # Those of the SDK and of the tuning service.
        if not name.startswith(("sagemaker_", "_"))
    }


def run_name(job: dict[str, Any]) -> str:
    """Name of the job's run, which is that of the job unless it was told otherwise."""
    given = run_settings(job)
    return given.get("resume") or given.get("run_name") or str(job["TrainingJobName"])


def storage_uri(job: dict[str, Any]) -> str:
    """S3 URI of the folder with the job's run folder: its --checkpoint-uri.

    Raises:
        UsageError: if it has none, and was therefore not submitted by this program.
    """
    synced = job.get("CheckpointConfig", {}).get("S3Uri")
    if not synced:
        raise UsageError(f"{job['TrainingJobName']} was not submitted by submit.py: it has no checkpoints on S3.")
    return checkpoint_uri(job.get("HyperParameters", {}), synced)


def run_uri(job: dict[str, Any]) -> str:
    """S3 URI of the job's run folder. SageMaker copies the folder of a single machine there while the job runs."""
    return f"{storage_uri(job).rstrip('/')}/{run_name(job)}"


def settings_of(job: dict[str, Any], tags: list[dict[str, str]]) -> dict[str, Any]:
    """The settings that submit a job like this one, by field of JobConfig.

    Args:
        job: SageMaker's description of the job, or the request that submitted it.
        tags: its tags, which are not in the description.

    Raises:
        UsageError: if it was not submitted by this program.
    """
    types = get_type_hints(JobConfig)
    given = {name: value for name, value in run_settings(job).items() if name not in DERIVED}
    if not given.keys() <= types.keys():
        foreign = min(given.keys() - types.keys())
        raise UsageError(f"{job['TrainingJobName']} was not submitted by submit.py: it has a hyperparameter {foreign}.")
    settings: dict[str, Any] = {
        name: value.lower() == "true" if types[name] is bool else parse_value(name, types[name], value)
        for name, value in given.items()
    }
    for channel in job.get("InputDataConfig", []):
        if channel["ChannelName"] == DATA_CHANNEL:
            settings["data"] = channel["DataSource"]["S3DataSource"]["S3Uri"].rstrip("/")
    output = job["OutputDataConfig"]
    location = re.fullmatch(r"s3://([^/]+)/(?:.*/)?([^/]+)/?", output["S3OutputPath"])
    if not location:
        raise UsageError(f"{job['TrainingJobName']} was not submitted by submit.py: its output is elsewhere.")
    limits, network = job["StoppingCondition"], job.get("VpcConfig", {})
    environment = dict(job.get("Environment", {}))
    is_spot = job.get("EnableManagedSpotTraining", False)
    return settings | {
        "role": job["RoleArn"],
        "bucket": location[1],
        "job_prefix": location[2],
        "image": job["AlgorithmSpecification"]["TrainingImage"],
        "checkpoint_uri": storage_uri(job),
        "max_run_seconds": limits["MaxRuntimeInSeconds"],
        "spot": is_spot,
        "max_wait_seconds": limits.get("MaxWaitTimeInSeconds") if is_spot else None,
        "retries": job.get("RetryStrategy", {}).get("MaximumRetryAttempts", 0),
        "join_seconds": int(environment.pop(JOIN_SECONDS, JobConfig.join_seconds)),
        "env": tuple(f"{name}={value}" for name, value in environment.items() if name != LOG_LEVEL_VARIABLE),
        "subnets": tuple(network.get("Subnets", ())),
        "security_groups": tuple(network.get("SecurityGroupIds", ())),
        "encrypt_traffic": job.get("EnableInterContainerTrafficEncryption"),
        "network_isolation": job.get("EnableNetworkIsolation"),
        "kms_key": output.get("KmsKeyId") or None,
        # AWS adds tags of its own.
        "tags": tuple(f"{tag['Key']}={tag['Value']}" for tag in tags if not tag["Key"].startswith("aws:")),
        **_machines(job["ResourceConfig"]),
    }


def _machines(resources: dict[str, Any]) -> dict[str, Any]:
    groups = {group["InstanceGroupName"]: group for group in resources.get("InstanceGroups") or []}
    coordinator = groups.pop(COORDINATOR_GROUP, {})
    workers = next(iter(groups.values()), resources)
    return {
        "instance_type": workers["InstanceType"],
        "instance_count": workers["InstanceCount"],
        "coordinator_instance_type": coordinator.get("InstanceType"),
        "volume_gb": resources["VolumeSizeInGB"],
        "volume_kms_key": resources.get("VolumeKmsKeyId") or None,
        "keep_alive_seconds": resources.get("KeepAlivePeriodInSeconds"),
    }
