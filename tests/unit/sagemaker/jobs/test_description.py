"""The settings of a job, read from its description, are those that it was submitted with."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from sagemaker_entry.client import sdk
from sagemaker_entry.client.channels import create_channels
from sagemaker_entry.client.session import open_session
from sagemaker_entry.client.settings import NOT_IN_A_JOB, JobConfig
from sagemaker_entry.client.trainer import build_trainer
from sagemaker_entry.jobs.description import run_name, run_uri, settings_of
from vgg_ddp.flags import UsageError

ROLE = "arn:aws:iam::123456789012:role/training"
# Every setting of a job, with a value that is not the default.
SETTINGS: dict[str, Any] = {
    "role": ROLE,
    "bucket": "mine",
    "job_prefix": "cats",
    # Without local disks, which accept no key.
    "instance_type": "ml.c5.xlarge",
    "instance_count": 3,
    "coordinator_instance_type": "ml.m5.large",
    "volume_gb": 70,
    "max_run_seconds": 7200,
    "retries": 5,
    "join_seconds": 300,
    "checkpoint_uri": "s3://mine/it's/here",
    "image": "mine:latest",
    "subnets": ("subnet-1", "subnet-2"),
    "security_groups": ("sg-1",),
    "encrypt_traffic": True,
    "kms_key": "alias/results",
    "volume_kms_key": "alias/disks",
    "tags": ("team=vision", "path=a=b"),
    "env": ("NCCL_DEBUG=INFO", "HTTPS_PROXY=http://proxy:3128"),
    "data": "s3://images/cats",
    "epochs": 3,
    "batch_size": 96,
    "num_workers": 12,
    "lr": 0.05,
    "recipe": "classic",
    "fast_convolutions": False,
    "keep_best": True,
    "validation_fraction": 0.1,
}
# Settings that cannot be combined with some of those above.
ALONE: dict[str, Any] = {"coordinator_instance_type": None, "instance_count": 1}
POOL: dict[str, Any] = ALONE | {"keep_alive_seconds": 600, "network_isolation": True}
SPOT: dict[str, Any] = {"spot": True, "max_wait_seconds": 9000}
# Where the job was submitted; what the command does; what a search has.
ELSEWHERE = {"region", "wait", "dry_run", "attach", "stop", "tune", "max_jobs", "parallel_jobs"}


def request_of(settings: dict[str, Any], source: Path) -> dict[str, Any]:
    """The request that submits a job with these settings, which has the fields of its description."""
    config = JobConfig(**{"role": ROLE, "region": "us-east-1", "dry_run": True} | settings)
    session = open_session(config)
    trainer = build_trainer(config, [], source, session)
    with pytest.raises(sdk.DryRunError) as caught:
        trainer.train(input_data_config=create_channels(trainer, config), wait=False, logs=False)
    return caught.value.request


@pytest.fixture(autouse=True)
def unchanged_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    # `open_session` sets it for the whole process.
    monkeypatch.setenv("SAGEMAKER_VALIDATE_ROLE", "true")


@pytest.mark.parametrize("more", [POOL, SPOT], ids=["pool", "spot"])
def test_settings_are_read_back_from_the_description(more: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").touch()
    (tmp_path / "sagemaker_entry").mkdir()
    (tmp_path / "sagemaker_entry" / "launch.py").touch()
    request = request_of(SETTINGS | more, tmp_path)
    tags = [*request["Tags"], {"Key": "aws:cloudformation", "Value": "x"}]
    found = settings_of(request, tags)
    assert {name: found[name] for name in SETTINGS | more} == SETTINGS | more
    # Those that were not given have their defaults.
    assert JobConfig(**found | {"network_isolation": more.get("network_isolation")}) == JobConfig(**SETTINGS | more)


def test_no_setting_of_a_job_is_forgotten() -> None:
    names = {field.name for field in dataclasses.fields(JobConfig) if field.name in vars(JobConfig)["__annotations__"]}
    assert names - ELSEWHERE == (SETTINGS | POOL | SPOT).keys() & names
    assert not (SETTINGS | POOL | SPOT).keys() & NOT_IN_A_JOB.keys()


def job(**hyperparameters: str) -> dict[str, Any]:
    return {
        "TrainingJobName": "job-7",
        "HyperParameters": hyperparameters,
        "CheckpointConfig": {"S3Uri": "s3://bucket/checkpoints/7/"},
    }


def test_run_of_a_job_has_its_name_or_that_of_the_run_it_resumes() -> None:
    assert run_name(job()) == "job-7"
    assert run_name(job(resume="job-1")) == "job-1"
    assert run_name(job(**{"run-name": "mine", "sagemaker_program": "x"})) == "mine"
    assert run_uri(job()) == "s3://bucket/checkpoints/7/job-7"
    assert run_uri(job(**{"storage-path": "s3://bucket/shared"})) == "s3://bucket/shared/job-7"


def test_job_of_another_program_is_refused() -> None:
    with pytest.raises(UsageError, match=r"job-7 was not submitted by submit.py: it has no checkpoints on S3."):
        run_uri({"TrainingJobName": "job-7"})
    with pytest.raises(UsageError, match=r"job-7 was not submitted by submit.py: it has a hyperparameter depth."):
        settings_of(job(depth="3"), [])
    elsewhere = job() | {"OutputDataConfig": {"S3OutputPath": "s3://bucket"}}
    with pytest.raises(UsageError, match=r"job-7 was not submitted by submit.py: its output is elsewhere."):
        settings_of(elsewhere, [])
