import pytest

from sagemaker_entry.client.endpoint import DeployConfig, own_name
from sagemaker_entry.client.images import INFERENCE, find_image
from vgg_ddp.flags import UsageError, parse_flags

ROLE = "arn:aws:iam::123456789012:role/serving"
BAD_INPUT = {
    "--job a --dry-run": "--dry-run does not contact AWS, so it requires --model instead of --job.",
    "--model /tmp/model": "--model /tmp/model: expected s3://BUCKET/.../model.tar.gz.",
    "--job a --endpoint x_y": "--endpoint x_y: expected up to 48 letters, digits and '-'.",
    f"--job a --endpoint a{'-' * 47}z": "expected up to 48 letters, digits and '-'.",
    "--job a --instance-type ml.p3.2xlarge": "--instance-type ml.p3.2xlarge: its GPUs have a compute capability below",
    "--job a --instance-type ml.c7g.large": "--instance-type ml.c7g.large: its processor is ARM",
    "--job a --instance-count 0": "--instance-count 0: expected a positive number.",
    "--job a --max-instances 0": "--max-instances 0: expected at least --instance-count 1.",
    "--job a --target-requests 100": "--target-requests requires --max-instances.",
    "--job a --max-instances 2 --target-requests 0": "--target-requests 0: expected a positive number.",
    "--job a --max-instances 2 --no-wait": "--max-instances cannot be combined with --no-wait",
    "--job a --capture-percent 10": "--capture-percent requires --capture-uri.",
    "--job a --capture-uri s3://b/c --capture-percent 101": "--capture-percent 101: expected 1 to 100.",
    "--job a --capture-uri /tmp": "--capture-uri /tmp: expected s3://BUCKET/PREFIX.",
    "--job a --delete": "--delete cannot be combined with --job.",
    "--delete --dry-run": "--delete cannot be combined with --dry-run.",
    "--job a --kms-key=": "--kms-key : expected a KMS key.",
    "--job a --subnets subnet-1": "--subnets and --security-groups must be used together.",
}


@pytest.mark.parametrize("flags", BAD_INPUT)
def test_bad_input_names_the_flag_and_what_was_expected(flags: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_flags(DeployConfig, ["--role", ROLE, *flags.split()], "deploy")
    assert BAD_INPUT[flags] in str(caught.value)


def test_deletion_needs_neither_a_role_nor_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SAGEMAKER_ROLE_ARN", raising=False)
    assert parse_flags(DeployConfig, ["--delete", "--endpoint", "cats"], "deploy").endpoint == "cats"


def test_only_names_with_the_time_of_a_deployment_belong_to_an_endpoint() -> None:
    assert own_name("cats", "cats-20261130115608")
    for name in ("cats", "cats-2-20261130115608", "dogs-20261130115608", "cats-20261130115608-copy"):
        assert not own_name("cats", name)


def test_image_is_known_in_all_kinds_of_regions() -> None:
    for region in ("us-east-1", "us-gov-west-1", "cn-north-1", "us-iso-east-1", "eusc-de-east-1", "mx-central-1"):
        for instance_type, kind in {"ml.c5.large": "cpu", "ml.g5.xlarge": "cuda"}.items():
            assert f"/ray:serve-ml-sagemaker-{kind}-v1." in find_image(INFERENCE, region, instance_type)
