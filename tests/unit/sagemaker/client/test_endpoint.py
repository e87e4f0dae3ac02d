import pytest

from sagemaker_entry.client.endpoint import DeployConfig
from vgg_ddp.flags import UsageError, parse_flags

ROLE = "arn:aws:iam::123456789012:role/serving"
BAD_INPUT = {
    "--job a --dry-run": "--dry-run does not contact AWS, so it requires --model instead of --job.",
    "--model /tmp/model": "--model /tmp/model: expected s3://BUCKET/.../model.tar.gz.",
    "--job a --endpoint x_y": "--endpoint x_y: expected up to 48 letters, digits and '-'.",
    "--job a --instance-count 0": "--instance-count 0: expected a positive number.",
    "--job a --subnets subnet-1": "--subnets and --security-groups must be used together.",
}


@pytest.mark.parametrize("flags", BAD_INPUT)
def test_bad_input_names_the_flag_and_what_was_expected(flags: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_flags(DeployConfig, ["--role", ROLE, *flags.split()], "deploy")
    assert BAD_INPUT[flags] in str(caught.value)
