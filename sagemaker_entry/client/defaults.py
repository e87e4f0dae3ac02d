"""The organization's defaults for SageMaker: the SDK's configuration file, applied to a job.

The SDK (3.27) applies such defaults only to objects that a program leaves out. This program creates all of them, and so
the SDK would drop the VPC, the keys, the encryption, the tags and the environment.
https://sagemaker.readthedocs.io/en/stable/overview.html#configuring-and-using-defaults-with-the-sagemaker-python-sdk
"""

import dataclasses
import os
from collections.abc import Iterator
from typing import Any

from sagemaker_entry.client.checks.access import ROLE_VARIABLE
from sagemaker_entry.client.settings import JobConfig
from vgg_ddp.flags import UsageError, flag

JOB = "SageMaker.TrainingJob."
TRAINER = "SageMaker.PythonSDK.Modules.ModelTrainer."
# Settings, and where the file may contain them. As in the SDK, the first place wins.
PLACES = {
    "role": (f"{TRAINER}role", f"{JOB}RoleArn"),
    "subnets": (f"{TRAINER}networking.subnets", f"{JOB}VpcConfig.Subnets"),
    "security_groups": (f"{TRAINER}networking.security_group_ids", f"{JOB}VpcConfig.SecurityGroupIds"),
    "network_isolation": (f"{TRAINER}networking.enable_network_isolation", f"{JOB}EnableNetworkIsolation"),
    "encrypt_traffic": (
        f"{TRAINER}networking.enable_inter_container_traffic_encryption",
        f"{JOB}EnableInterContainerTrafficEncryption",
    ),
    "kms_key": (f"{TRAINER}outputDataConfig.kms_key_id", f"{JOB}OutputDataConfig.KmsKeyId"),
    "volume_kms_key": (f"{TRAINER}compute.volume_kms_key_id", f"{JOB}ResourceConfig.VolumeKmsKeyId"),
    "tags": (f"{JOB}Tags",),
    "env": (f"{TRAINER}environment", f"{JOB}Environment"),
}
# Not a setting of JobConfig: added to the request as it is.
PROFILER = f"{JOB}ProfilerConfig"


def with_defaults(config: JobConfig, file: dict[str, Any]) -> JobConfig:
    """The settings of a job, with those of the file that were not given.

    Args:
        config: the settings.
        file: the content of the SDK's configuration file.

    Raises:
        UsageError: for a field that this program cannot apply, or an invalid combination.
    """
    found = {path: value for path, value in _fields(file) if path.startswith((JOB, TRAINER))}
    unknown = set(found) - {PROFILER, *(path for paths in PLACES.values() for path in paths)}
    if unknown:
        raise UsageError(
            f"{min(unknown)} in the SDK's defaults file cannot be applied to this job. Give the corresponding flag, if "
            "there is one, and remove the field."
        )
    values = {
        name: next(found[path] for path in paths if path in found)
        for name, paths in PLACES.items()
        if any(path in found for path in paths)
    }
    applied = {name: value for name, value in _converted(values, config).items() if value != getattr(config, name)}
    if not applied:
        return config
    try:
        return dataclasses.replace(config, **applied)
    except UsageError as error:
        raise UsageError(f"{error} (The SDK's defaults file sets {', '.join(sorted(applied))}.)") from error


def profiler_config(file: dict[str, Any]) -> dict[str, Any]:
    """The field of a job's request that turns SageMaker's profiler off, if the file does. Searches have no profiler."""
    value = dict(_fields(file)).get(PROFILER)
    return {"ProfilerConfig": value} if value else {}


def _converted(values: dict[str, Any], config: JobConfig) -> dict[str, Any]:
    """The file's values as settings: what was given wins, tag by tag and variable by variable."""
    converted: dict[str, Any] = {}
    for name, value in values.items():
        given = getattr(config, name)
        if name in ("tags", "env"):
            pairs = value.items() if name == "env" else ((tag["Key"], tag["Value"]) for tag in value)
            defaults = {key: _text(name, key, text) for key, text in pairs}
            merged = defaults | dict(text.split("=", 1) for text in given)
            converted[name] = tuple(f"{key}={text}" for key, text in merged.items())
        elif name == "role":
            converted[name] = given or os.environ.get(ROLE_VARIABLE) or value
        elif given in (None, ()):
            converted[name] = tuple(value) if isinstance(value, list) else value
    # A VPC is given as a whole: its subnets do not mix with security groups of another one.
    if config.subnets or config.security_groups:
        converted.pop("subnets", None)
        converted.pop("security_groups", None)
    return converted


def _text(name: str, key: Any, value: Any) -> str:
    """A value of the file as text.

    Raises:
        UsageError: if it or its name is not text, such as the word `on` in YAML.
    """
    if not isinstance(key, str) or not isinstance(value, str | int | float) or isinstance(value, bool):
        raise UsageError(
            f"{flag(name)}: {key} in the SDK's defaults file: expected text; put names and values in quotes."
        )
    return str(value)


def _fields(content: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The fields of the file by their dotted path. Those of PLACES are not taken apart."""
    whole = {PROFILER, *(place for places in PLACES.values() for place in places)}
    if path in whole or not isinstance(content, dict):
        yield path, content
        return
    for key, value in content.items():
        yield from _fields(value, f"{path}.{key}" if path else key)
