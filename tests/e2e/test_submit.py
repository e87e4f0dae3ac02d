"""submit.py against moto's SageMaker, and its dry run without any service."""

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.validate import ParamValidator

from support.command import free_port, submit_to_sagemaker
from support.connections import Connections
from support.s3_server import BUCKET, client, s3_server

pytestmark = pytest.mark.e2e
ROLE = "arn:aws:iam::123456789012:role/training"
ACCOUNT = ("--role", ROLE, "--region", "us-east-1")
MLFLOW = "arn:aws:sagemaker:us-east-1:123456789012:mlflow-tracking-server/mine"
DEFAULTS: dict[str, Any] = {
    "SchemaVersion": "1.0",
    "SageMaker": {
        "PythonSDK": {"Modules": {"Session": {"DefaultS3Bucket": "organization", "DefaultS3ObjectKeyPrefix": "all"}}},
        "TrainingJob": {
            "EnableInterContainerTrafficEncryption": True,
            "EnableNetworkIsolation": False,
            "Environment": {"HTTPS_PROXY": "http://proxy"},
            "OutputDataConfig": {"KmsKeyId": "alias/file"},
            "ProfilerConfig": {"DisableProfiler": True},
            "ResourceConfig": {"VolumeKmsKeyId": "alias/disks"},
            "Tags": [{"Key": "team", "Value": "vision"}],
            "VpcConfig": {"SecurityGroupIds": ["sg-1"], "Subnets": ["subnet-1"]},
        },
    },
}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with s3_server(free_port()) as url:
        yield url


def dry_run(tmp_path: Path, *flags: object, operation: str = "CreateTrainingJob", **environment: str) -> dict[str, Any]:
    """The request that a dry run prints, validated with botocore's model of the service. It must contact nobody."""
    connections = Connections(tmp_path / "connections")
    result = submit_to_sagemaker(tmp_path, *ACCOUNT, "--dry-run", *flags, **connections.environment | environment)
    assert result.returncode == 0, result.stderr
    assert connections.addresses() == set()
    request: dict[str, Any] = json.loads(result.stdout[result.stdout.index("{\n") :])
    shape = boto3.client("sagemaker", region_name="us-east-1").meta.service_model.operation_model(operation).input_shape
    report = ParamValidator().validate(request, shape)
    assert not report.has_errors(), report.generate_report()
    # botocore validates only types and required fields; the service also validates patterns.
    for name, value in request.get("HyperParameters", {}).items():
        assert re.fullmatch(r".{0,2500}", value), name
    assert re.fullmatch(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}", request.get("TrainingJobName", "x"))
    return request


def channel_uris(request: dict[str, Any]) -> dict[str, str]:
    return {c["ChannelName"]: c["DataSource"]["S3DataSource"]["S3Uri"] for c in request["InputDataConfig"]}


def assert_defaults(request: dict[str, Any]) -> None:
    """Assert that the request of a job, or a search's definition of its jobs, has what DEFAULTS contains."""
    assert request["VpcConfig"] == {"SecurityGroupIds": ["sg-1"], "Subnets": ["subnet-1"]}
    assert request["ResourceConfig"]["VolumeKmsKeyId"] == "alias/disks"
    assert request["EnableInterContainerTrafficEncryption"] is True
    assert request["EnableNetworkIsolation"] is False
    assert request["Environment"]["HTTPS_PROXY"] == "http://proxy"
    assert request["Tags"] == [{"Key": "team", "Value": "vision"}]


def test_request_for_one_spot_instance(tmp_path: Path) -> None:
    request = dry_run(tmp_path, "--instance-type", "ml.g5.12xlarge", "--spot", "--epochs", 15, "--tags", "team=vision",
                      "--env", 'QUOTED=it\'s "$HOME"')  # fmt: skip
    assert request["HyperParameters"] == {"epochs": "15", "data": "cifar10"}
    assert request["Environment"] == {"VGG_JOIN_SECONDS": "600", "SM_LOG_LEVEL": "30", "QUOTED": 'it\'s "$HOME"'}
    assert request["ResourceConfig"] == {"InstanceType": "ml.g5.12xlarge", "InstanceCount": 1, "VolumeSizeInGB": 50}
    assert request["EnableManagedSpotTraining"] is True
    assert request["StoppingCondition"] == {"MaxRuntimeInSeconds": 14400, "MaxWaitTimeInSeconds": 28800}
    assert request["CheckpointConfig"]["LocalPath"] == "/opt/ml/checkpoints"
    assert request["CheckpointConfig"]["S3Uri"].startswith(
        "s3://sagemaker-us-east-1-123456789012/vgg11-ddp/checkpoints/"
    )
    assert request["RoleArn"] == ROLE
    assert request["Tags"] == [{"Key": "team", "Value": "vision"}]
    assert request["RetryStrategy"] == {"MaximumRetryAttempts": 2}
    assert set(channel_uris(request)) == {"code", "sm_drivers"}
    image = request["AlgorithmSpecification"]["TrainingImage"]
    assert re.fullmatch(r"\d{12}\.dkr\.ecr\.us-east-1\.amazonaws\.com/pytorch:2\.14-cu\d+-amzn2023-sagemaker", image)


def test_request_for_several_instances_with_coordinator_network_and_keys(tmp_path: Path) -> None:
    flags = ["--instance-type", "ml.p4d.24xlarge", "--instance-count", 4, "--coordinator-instance-type", "ml.m5.large"]
    flags += ["--subnets", "subnet-1", "subnet-2", "--security-groups", "sg-1", "--encrypt-traffic"]
    flags += ["--kms-key", "alias/results", "--volume-kms-key", "alias/disks"]
    flags += ["--data", "s3://images/cats", "--no-profile", "--num-workers", 32, "--checkpoint-uri", "s3://b/it's"]
    request = dry_run(tmp_path, *flags)
    groups = [
        {"InstanceGroupName": "coordinator", "InstanceType": "ml.m5.large", "InstanceCount": 1},
        {"InstanceGroupName": "workers", "InstanceType": "ml.p4d.24xlarge", "InstanceCount": 4},
    ]
    assert request["ResourceConfig"] == {
        "InstanceGroups": groups,
        "VolumeSizeInGB": 50,
        "VolumeKmsKeyId": "alias/disks",
    }
    assert request["VpcConfig"] == {"Subnets": ["subnet-1", "subnet-2"], "SecurityGroupIds": ["sg-1"]}
    assert request["EnableInterContainerTrafficEncryption"] is True
    assert request["OutputDataConfig"]["KmsKeyId"] == "alias/results"
    assert channel_uris(request)["training"] == "s3://images/cats/"
    assert request["HyperParameters"] == {
        "profile": "false",
        "num-workers": "32",
        # Encoded as JSON twice, so that no apostrophe reaches the container's shell.
        "storage-path": '"\\"s3://b/it\\\\u0027s\\""',
    }
    # Checkpoints are not in the folder that SageMaker copies.
    assert request["CheckpointConfig"]["S3Uri"] == "s3://b/it's/hosts"


def test_request_for_a_search(tmp_path: Path) -> None:
    flags = ["--tune", "lr=0.05:0.4", "weight-decay=0.0001:0.01", "batch-size=64,128", "--max-jobs", 6, "--epochs", 3]
    flags += ["--kms-key", "alias/results", "--mlflow", MLFLOW, "--instance-type", "ml.c5.xlarge"]
    file = tmp_path / "defaults.yaml"
    file.write_text(json.dumps(DEFAULTS))
    request = dry_run(
        tmp_path, *flags, operation="CreateHyperParameterTuningJob", SAGEMAKER_ADMIN_CONFIG_OVERRIDE=str(file)
    )
    config, definition = request["HyperParameterTuningJobConfig"], request["TrainingJobDefinition"]
    assert config["HyperParameterTuningJobObjective"] == {"Type": "Maximize", "MetricName": "validation_accuracy"}
    assert config["ResourceLimits"] == {"MaxNumberOfTrainingJobs": 6, "MaxParallelTrainingJobs": 2}
    ranges = config["ParameterRanges"]
    decay = {"Name": "weight-decay", "MinValue": "0.0001", "MaxValue": "0.01", "ScalingType": "Logarithmic"}
    rate = {"Name": "lr", "MinValue": "0.05", "MaxValue": "0.4", "ScalingType": "Linear"}
    assert ranges["ContinuousParameterRanges"] == [rate, decay]
    assert ranges["CategoricalParameterRanges"] == [{"Name": "batch-size", "Values": ["64", "128"]}]
    assert definition["StaticHyperParameters"]["epochs"] == "3"
    assert definition["StaticHyperParameters"]["validation-fraction"] == "0.1"
    assert definition["StaticHyperParameters"]["sagemaker_program"] == "sagemaker_entry/launch.py"
    assert definition["RetryStrategy"] == {"MaximumRetryAttempts": 2}
    assert definition["OutputDataConfig"]["KmsKeyId"] == "alias/results"
    # Every trial trains on the same data, and its toolkit does not print the environment.
    assert definition["StaticHyperParameters"]["data"] == "cifar10"
    assert definition["StaticHyperParameters"]["sagemaker_container_log_level"] == "30"
    assert definition["StaticHyperParameters"]["mlflow"] == MLFLOW
    assert definition["AlgorithmSpecification"]["TrainingImage"].endswith("amzn2023-sagemaker")
    assert re.fullmatch(r"vgg11-ddp-[0-9a-f]{6}-[0-9-]{11}", request["HyperParameterTuningJobName"])
    assert_defaults(definition | {"Tags": request["Tags"]})
    (drivers,) = channel_uris(definition).values()
    code = definition["StaticHyperParameters"]["sagemaker_submit_directory"]
    assert {uri.startswith("s3://organization/all/vgg11-ddp/vgg11-ddp-") for uri in (drivers, code)} == {True}


def test_request_with_the_defaults_of_the_organization(tmp_path: Path) -> None:
    file = tmp_path / "defaults.yaml"
    file.write_text(json.dumps(DEFAULTS))
    flags = ["--instance-type", "ml.c5.xlarge", "--keep-alive-seconds", 600]
    request = dry_run(tmp_path, *flags, SAGEMAKER_ADMIN_CONFIG_OVERRIDE=str(file))
    assert_defaults(request)
    assert request["ResourceConfig"]["KeepAlivePeriodInSeconds"] == 600
    assert request["OutputDataConfig"] == {
        "S3OutputPath": "s3://organization/all/vgg11-ddp",
        "KmsKeyId": "alias/file",
        "CompressionType": "GZIP",
    }
    assert request["ProfilerConfig"] == {"DisableProfiler": True}
    uris = {request["CheckpointConfig"]["S3Uri"], *channel_uris(request).values()}
    assert {uri.startswith("s3://organization/all/vgg11-ddp/") for uri in uris} == {True}


def test_jobs_submitted_at_the_same_time_share_nothing_and_are_not_followed_with_no_wait(
    endpoint: str, sdk_environment: dict[str, str], tmp_path: Path
) -> None:
    flags = [*ACCOUNT, "--bucket", BUCKET, "--job-prefix", "same", "--no-wait"]
    with ThreadPoolExecutor(3) as pool:
        environment = sdk_environment | {"AWS_ENDPOINT_URL": endpoint}
        futures = [pool.submit(submit_to_sagemaker, tmp_path, *flags, **environment) for _ in range(3)]
        results = [future.result() for future in futures]
    assert [result.returncode for result in results] == [0, 0, 0], results
    assert not any("Status:" in result.stdout for result in results)
    names = {re.findall(r"^Job: +(\S+)$", result.stdout, re.MULTILINE)[0] for result in results}
    s3 = client(endpoint)
    files = [item["Key"] for item in s3.list_objects_v2(Bucket=BUCKET, Prefix="same/")["Contents"]]
    secrets = [key for key in files if key.endswith("sagemaker_entry/job-secret")]
    assert {key.split("/")[1] for key in secrets} == names
    contents = {s3.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in secrets}
    assert (len(names), len(secrets), len(contents)) == (3, 3, 3)


def test_submitted_job_is_followed_to_its_end(
    endpoint: str, sdk_environment: dict[str, str], tiny_data: Path, tmp_path: Path
) -> None:
    flags = [*ACCOUNT, "--bucket", BUCKET, "--instance-type", "ml.c5.xlarge", "--data", tiny_data, "--epochs", 1]
    # The SDK would ask IAM about the role, and report its use, unless this is turned off.
    connections = Connections(tmp_path / "connections")
    environment = sdk_environment | connections.environment | {"AWS_ENDPOINT_URL": endpoint}
    environment |= {"AWS_ENDPOINT_URL_IAM": f"http://127.0.0.1:{free_port()}"}
    del environment["SAGEMAKER_USER_CONFIG_OVERRIDE"]
    result = submit_to_sagemaker(tmp_path, *flags, **environment)
    assert result.returncode == 0, result.stdout + result.stderr
    host, port = endpoint.removeprefix("http://").split(":")
    assert connections.addresses() == {f"('{host}', {port})", f"('{host}', {port})"}
    output = result.stdout
    assert "Machines:  1 x ml.c5.xlarge, at most 4 h" in output
    assert "Status:    Completed" in output
    (name,) = re.findall(r"^Job: +(\S+)$", output, re.MULTILINE)
    keys = [item["Key"] for item in client(endpoint).list_objects_v2(Bucket=BUCKET)["Contents"]]
    assert f"vgg11-ddp/{name}/input/code/sagemaker_entry/launch.py" in keys
    assert sum(key.endswith(("train.parquet", "test.parquet")) and "/data/" in key for key in keys) == 2


def test_failed_connection_is_a_one_line_error(tmp_path: Path, sdk_environment: dict[str, str]) -> None:
    flags = [*ACCOUNT, "--bucket", BUCKET, "--instance-type", "ml.c5.xlarge"]
    nowhere = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}", "AWS_MAX_ATTEMPTS": "1"}
    result = submit_to_sagemaker(tmp_path, *flags, **sdk_environment, **nowhere)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in result.stderr


def test_bad_input_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    result = submit_to_sagemaker(tmp_path, *ACCOUNT, "--data", "/nowhere")
    assert result.returncode == 2, result.stdout + result.stderr
    assert (
        result.stderr == "error: --data /nowhere does not exist: expected auto, cifar10, sample, or a folder or URI.\n"
    )
