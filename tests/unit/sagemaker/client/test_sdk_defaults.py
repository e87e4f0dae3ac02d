"""The organization's defaults for SageMaker, applied to the settings of a job."""

from typing import Any

import pytest

from sagemaker_entry.client.defaults import profiler_config, with_defaults
from sagemaker_entry.client.settings import JobConfig
from vgg_ddp.flags import UsageError, parse_flags

ROLE = "arn:aws:iam::123456789012:role/training"
FILE_ROLE = "arn:aws:iam::123456789012:role/organization"
JOB = {
    "EnableInterContainerTrafficEncryption": True,
    "EnableNetworkIsolation": False,
    "Environment": {"NCCL_DEBUG": "INFO", "HTTPS_PROXY": "http://proxy"},
    "OutputDataConfig": {"KmsKeyId": "alias/results"},
    "ResourceConfig": {"VolumeKmsKeyId": "alias/disks"},
    "ProfilerConfig": {"DisableProfiler": True},
    "RoleArn": FILE_ROLE,
    "VpcConfig": {"SecurityGroupIds": ["sg-1"], "Subnets": ["subnet-1", "subnet-2"]},
    "Tags": [{"Key": "team", "Value": "vision"}, {"Key": "cost", "Value": "7"}],
}


def file_of(job: dict[str, Any], trainer: dict[str, Any] | None = None) -> dict[str, Any]:
    modules = {"ModelTrainer": trainer or {}, "Session": {"DefaultS3Bucket": "b"}, "TelemetryOptOut": True}
    return {
        "SchemaVersion": "1.0",
        "SageMaker": {"TrainingJob": job, "Model": {"x": 1}, "PythonSDK": {"Modules": modules}},
    }


def config_of(*flags: str) -> JobConfig:
    return parse_flags(JobConfig, flags, "submit")


def test_every_field_becomes_a_setting() -> None:
    config = with_defaults(config_of(), file_of(JOB))
    assert config == config_of(
        *("--role", FILE_ROLE, "--encrypt-traffic", "--no-network-isolation"),
        *("--subnets", "subnet-1", "subnet-2", "--security-groups", "sg-1"),
        *("--kms-key", "alias/results", "--volume-kms-key", "alias/disks", "--tags", "team=vision", "cost=7"),
        *("--env", "NCCL_DEBUG=INFO", "HTTPS_PROXY=http://proxy"),
    )
    assert profiler_config(file_of(JOB)) == {"ProfilerConfig": {"DisableProfiler": True}}


def test_flags_win_over_the_file() -> None:
    flags = ("--role", ROLE, "--no-encrypt-traffic", "--subnets", "subnet-9", "--security-groups", "sg-9")
    flags += ("--kms-key", "mine", "--tags", "team=audio", "--env", "NCCL_DEBUG=WARN")
    config = with_defaults(config_of(*flags), file_of(JOB))
    assert config.role == ROLE
    assert config.encrypt_traffic is False
    assert (config.subnets, config.security_groups) == (("subnet-9",), ("sg-9",))
    assert config.kms_key == "mine"
    assert config.tags == ("team=audio", "cost=7")
    assert config.env == ("NCCL_DEBUG=WARN", "HTTPS_PROXY=http://proxy")


def test_role_of_the_environment_wins_over_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAGEMAKER_ROLE_ARN", ROLE)
    assert with_defaults(config_of(), file_of(JOB)).role == ROLE


def test_section_of_the_trainer_wins_over_that_of_the_job() -> None:
    trainer = {"networking": {"subnets": ["subnet-7"], "security_group_ids": ["sg-7"]}, "environment": {"A": "b"}}
    config = with_defaults(config_of(), file_of(JOB, trainer))
    assert (config.subnets, config.security_groups, config.env) == (("subnet-7",), ("sg-7",), ("A=b",))


def test_file_without_a_section_for_jobs_changes_nothing() -> None:
    config = config_of("--role", ROLE)
    assert with_defaults(config, file_of({})) is config


@pytest.mark.parametrize(
    ("job", "trainer", "message"),
    [
        ({"NewField": 1}, {}, r"SageMaker\.TrainingJob\.NewField in the SDK's defaults file cannot be applied"),
        ({}, {"compute": {"keep_alive_period_in_seconds": 60}}, r"ModelTrainer\.compute\.keep_alive_period_in_seconds"),
        ({"EnableNetworkIsolation": True}, {}, "requires --image with Ray.*defaults file sets network_isolation"),
        ({"VpcConfig": {"Subnets": ["subnet-1"]}}, {}, "must be used together.*defaults file sets subnets"),
        ({"Environment": {"SM_LOG_LEVEL": "20"}}, {}, "SM_LOG_LEVEL.*defaults file sets env"),
        ({"Environment": {True: "x"}}, {}, "--env: True in the SDK's defaults file: expected text"),
        ({}, {"environment": {"DEBUG": True}}, "--env: DEBUG in the SDK's defaults file: expected text"),
    ],
    ids=["unknown", "trainer", "isolation", "vpc", "reserved", "name", "value"],
)
def test_field_that_cannot_be_applied_is_refused_by_name(
    job: dict[str, Any], trainer: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        with_defaults(config_of("--role", ROLE), file_of(job, trainer))
