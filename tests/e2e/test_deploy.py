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

from support.command import PATIENCE, ROOT, free_port
from support.s3_server import CREDENTIALS, s3_server

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
    return subprocess.run(
        command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, timeout=PATIENCE
    )


def test_dry_run_prints_three_valid_requests(tmp_path: Path) -> None:
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


def test_command_waits_for_the_endpoint_and_shows_how_to_delete_it(endpoint: str, tmp_path: Path) -> None:
    # The flags select another region than the user's configuration.
    environment = CREDENTIALS | {"AWS_ENDPOINT_URL": endpoint, "AWS_DEFAULT_REGION": "eu-west-1"}
    result = run(tmp_path, *FLAGS, *MODEL, "--endpoint", "cats", **environment)
    assert result.returncode == 0, result.stdout + result.stderr
    # Printed before the wait, which Ctrl-C may end.
    deletion, status = result.stdout.splitlines()[-2:]
    assert deletion == "Delete it: aws sagemaker delete-endpoint --endpoint-name cats --region us-east-1"
    assert status == "Status:    InService"
    again = run(tmp_path, *FLAGS, "--job", "no-such-job", **environment)
    assert again.returncode == 1
    assert again.stderr.startswith("error: ") and "no-such-job" in again.stderr


def test_bad_input_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    result = run(tmp_path, *FLAGS)
    assert result.returncode == 2, result.stdout + result.stderr
    assert result.stderr == "error: expected either --job or --model.\n"
