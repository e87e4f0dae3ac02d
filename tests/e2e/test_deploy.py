"""deploy.py against moto's SageMaker, and its dry run."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from botocore.validate import ParamValidator

from command import ROOT, free_port
from s3_server import CREDENTIALS, s3_server

pytestmark = pytest.mark.e2e
DEPLOY = ROOT / "sagemaker_entry" / "deploy.py"
FLAGS = ("--role", "arn:aws:iam::123456789012:role/serving", "--region", "us-east-1")
MODEL = ("--model", "s3://bucket/job/output/model.tar.gz")


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with s3_server(free_port()) as url:
        yield url


def run(cwd: Path, *flags: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(DEPLOY), *map(str, flags)]
    return subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, timeout=120)


def test_dry_run_prints_three_requests_that_the_service_knows(tmp_path: Path) -> None:
    flags = ("--subnets", "subnet-1", "--security-groups", "sg-1", "--kms-key", "alias/disk", "--instance-count", 2)
    result = run(tmp_path, *FLAGS, *MODEL, *flags, "--dry-run")
    assert result.returncode == 0, result.stderr
    requests = json.loads(result.stdout)
    service = boto3.client("sagemaker", region_name="us-east-1").meta.service_model
    for method, request in requests.items():
        operation = "".join(word.title() for word in method.split("_"))
        report = ParamValidator().validate(request, service.operation_model(operation).input_shape)
        assert not report.has_errors(), report.generate_report()
    container = requests["create_model"]["PrimaryContainer"]
    assert container["ModelDataUrl"] == MODEL[1]
    assert container["Environment"]["SAGEMAKER_PROGRAM"] == "inference.py"
    assert re.search(r"/pytorch-inference:2\.6-cpu-py312", container["Image"])
    assert requests["create_model"]["VpcConfig"] == {"Subnets": ["subnet-1"], "SecurityGroupIds": ["sg-1"]}
    (variant,) = requests["create_endpoint_config"]["ProductionVariants"]
    assert (variant["InstanceType"], variant["InitialInstanceCount"]) == ("ml.c5.large", 2)
    assert requests["create_endpoint_config"]["KmsKeyId"] == "alias/disk"


def test_endpoint_is_in_service_and_told_how_to_delete(endpoint: str, tmp_path: Path) -> None:
    # Where the endpoint is made is not where the user's other commands go.
    environment = CREDENTIALS | {"AWS_ENDPOINT_URL": endpoint, "AWS_DEFAULT_REGION": "eu-west-1"}
    result = run(tmp_path, *FLAGS, *MODEL, "--endpoint", "cats", **environment)
    assert result.returncode == 0, result.stdout + result.stderr
    # Told before the wait, so that Ctrl-C does not hide it.
    deletion, status = result.stdout.splitlines()[-2:]
    assert deletion == "Delete it: aws sagemaker delete-endpoint --endpoint-name cats --region us-east-1"
    assert status == "Status:    InService"
    again = run(tmp_path, *FLAGS, "--job", "no-such-job", **environment)
    assert again.returncode == 1
    assert again.stderr.startswith("error: ") and "no-such-job" in again.stderr


BAD_INPUT = {
    "": "expected either --job or --model.",
    "--job a --dry-run": "--dry-run asks nobody: expected --model instead of --job.",
    "--model /tmp/model": "--model /tmp/model: expected s3://BUCKET/.../model.tar.gz.",
    "--job a --endpoint x_y": "--endpoint x_y: expected up to 48 letters, digits and '-'.",
    "--job a --instance-count 0": "--instance-count 0: expected a positive number.",
}


@pytest.mark.parametrize("flags", BAD_INPUT)
def test_bad_input_is_one_line_and_exit_code_2(flags: str, tmp_path: Path) -> None:
    result = run(tmp_path, *FLAGS, *flags.split())
    assert result.returncode == 2, result.stdout + result.stderr
    (line,) = result.stderr.splitlines()
    assert BAD_INPUT[flags] in line
