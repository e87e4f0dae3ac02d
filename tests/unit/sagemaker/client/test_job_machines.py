import boto3
import pytest

from sagemaker_entry.client.checks.machines import check_batches, check_machine, count_gpus
from sagemaker_entry.client.settings import JobConfig
from vgg_ddp.flags import UsageError, parse_flags

ROLE = "arn:aws:iam::123456789012:role/training"


def config_of(*flags: str) -> JobConfig:
    return parse_flags(JobConfig, ["--role", ROLE, *flags], "submit")


@pytest.mark.parametrize(
    ("instance_type", "reason"),
    [
        ("ml.p2.xlarge", "compute capability below 7.5"),
        ("ml.p3.16xlarge", "compute capability below 7.5"),
        ("ml.p3dn.24xlarge", "compute capability below 7.5"),
        ("ml.trn1.32xlarge", "not AWS Trainium or Inferentia"),
        ("ml.trn2.48xlarge", "not AWS Trainium or Inferentia"),
        ("ml.inf2.xlarge", "not AWS Trainium or Inferentia"),
        ("ml.m6g.xlarge", "its processor is ARM"),
        ("ml.c7gn.xlarge", "its processor is ARM"),
        ("ml.g5g.xlarge", "its processor is ARM"),
        ("ml.p6e-gb200.36xlarge", "its processor is ARM"),
    ],
)
def test_machine_that_cannot_train_is_refused_with_the_reason(instance_type: str, reason: str) -> None:
    with pytest.raises(UsageError, match=f"--instance-type {instance_type}: .*{reason}"):
        config_of("--instance-type", instance_type)


def test_all_other_training_machines_are_accepted() -> None:
    model = boto3.client("sagemaker", region_name="us-east-1").meta.service_model
    refused = set()
    for instance_type in model.shape_for("TrainingInstanceType").enum:
        try:
            check_machine("instance_type", instance_type, has_own_image=False)
        except UsageError:
            refused.add(instance_type.split(".")[1])
    assert refused == {"p2", "p3", "p3dn", "p6e-gb200", "trn1", "trn1n", "trn2"}


def test_older_gpus_are_accepted_with_an_image_of_the_user() -> None:
    assert config_of("--instance-type", "ml.p3.2xlarge", "--image", "mine").instance_type == "ml.p3.2xlarge"


def test_coordinator_must_run_the_image_but_need_not_train() -> None:
    assert config_of("--coordinator-instance-type", "ml.p3.2xlarge").coordinator_instance_type == "ml.p3.2xlarge"
    with pytest.raises(UsageError, match=r"--coordinator-instance-type ml\.m6g\.large: its processor is ARM"):
        config_of("--coordinator-instance-type", "ml.m6g.large")


def test_gpus_are_known_from_the_table_of_the_sdk() -> None:
    assert count_gpus("ml.g5.12xlarge", "us-east-1") == 4
    # The table lacks this region, and this type.
    assert count_gpus("ml.p4d.24xlarge", "ca-west-1") == 8
    assert count_gpus("ml.g6.12xlarge", "us-east-1") is None
    assert count_gpus("ml.c5.xlarge", "us-east-1") == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--batch-size", "100"), "--batch-size 100 cannot be split evenly over 8 workers: use --batch-size 96 or 104"),
        (("--batch-size", "8"), "--batch-size 8: expected at least 16, 2 per worker"),
        (("--tune", "batch-size=64,100"), "--batch-size 100 cannot be split evenly over 8 workers"),
        (("--tune", "batch-size=64:128"), "most of these do not split evenly over 8 workers"),
    ],
)
def test_batch_must_split_over_the_gpus_of_all_machines(flags: tuple[str, ...], message: str) -> None:
    config = config_of(*flags)
    with pytest.raises(UsageError, match=message) as caught:
        check_batches(config, "ml.g5.12xlarge", 2, "us-east-1")
    assert "2 x ml.g5.12xlarge train with 8 workers" in str(caught.value)


def test_batch_is_not_checked_where_the_number_of_workers_is_not_known() -> None:
    check_batches(config_of("--batch-size", "100"), "ml.g6.48xlarge", 3, "us-east-1")
    check_batches(config_of("--batch-size", "100", "--num-workers", "4"), "ml.p5.48xlarge", 1, "us-east-1")
    check_batches(config_of("--batch-size", "100", "--min-workers", "2"), "ml.p5.48xlarge", 1, "us-east-1")
    # One worker per machine without GPUs.
    check_batches(config_of("--batch-size", "100"), "ml.c5.xlarge", 4, "us-east-1")
