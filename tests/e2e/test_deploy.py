"""deploy.py against moto's SageMaker and Application Auto Scaling, and its dry run."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.validate import ParamValidator

from sagemaker_entry.client.endpoint import ENVIRONMENT
from sagemaker_entry.deploy import main
from support.command import PATIENCE, ROOT
from support.fake_endpoints import REGION, Endpoints, endpoints_service
from support.s3_server import CREDENTIALS

pytestmark = pytest.mark.e2e
DEPLOY = ROOT / "sagemaker_entry" / "deploy.py"
WHERE = ("--region", REGION, "--endpoint", "cats")
ROLE = ("--role", "arn:aws:iam::123456789012:role/serving", "--image", "mine")
MODEL = ("--model", "s3://bucket/job/output/model.tar.gz")
Deploy = Callable[..., tuple[int, str, str]]
SCALING = ("--max-instances", 4, "--target-requests", 300)


@pytest.fixture(scope="module")
def service() -> Iterator[Endpoints]:
    with endpoints_service() as running:
        yield running


@pytest.fixture
def deploy(service: Endpoints, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Deploy:
    """Runs deploy.py in an empty account, and returns its exit code, stdout and stderr.

    In this process, because each new one would import boto3 for more than a second.
    """
    # moto answers unsupported calls with status 500, which boto3 would retry for seconds.
    environment = CREDENTIALS | {"AWS_ENDPOINT_URL": service.url, "AWS_MAX_ATTEMPTS": "1"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    def run(*flags: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["deploy.py", *map(str, (*WHERE, *flags))])
        try:
            code = main()
        except SystemExit as ended:
            code = int(str(ended.code))
        return code, *capsys.readouterr()

    service.reset()
    return run


def run_deploy(cwd: Path, *flags: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(DEPLOY), *map(str, flags)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=PATIENCE)


def current(service: Endpoints) -> str:
    """Name of the endpoint's configuration."""
    return str(service.client().describe_endpoint(EndpointName="cats")["EndpointConfigName"])


def configuration(service: Endpoints) -> dict[str, Any]:
    described: dict[str, Any] = service.client().describe_endpoint_config(EndpointConfigName=current(service))
    return described


def stored(service: Endpoints) -> list[str]:
    """Names of all configurations and models."""
    sagemaker = service.client()
    names = [each["EndpointConfigName"] for each in sagemaker.list_endpoint_configs()["EndpointConfigs"]]
    return sorted(names + [each["ModelName"] for each in sagemaker.list_models()["Models"]])


def scaling(service: Endpoints) -> list[tuple[int, int, float]]:
    """Smallest and largest number of instances, and requests per instance, of everything that scales."""
    client = service.client("application-autoscaling")
    targets = client.describe_scalable_targets(ServiceNamespace="sagemaker")["ScalableTargets"]
    found = []
    for target in targets:
        assert target["ResourceId"] == "endpoint/cats/variant/all"
        (policy,) = client.describe_scaling_policies(ServiceNamespace="sagemaker")["ScalingPolicies"]
        wanted = policy["TargetTrackingScalingPolicyConfiguration"]["TargetValue"]
        found.append((target["MinCapacity"], target["MaxCapacity"], wanted))
    return found


def test_role_may_be_given_by_its_name(service: Endpoints, deploy: Deploy) -> None:
    iam = boto3.client("iam", region_name=REGION)
    arn = iam.create_role(RoleName="serving", Path="/service-role/", AssumeRolePolicyDocument="{}")["Role"]["Arn"]
    code, _, error = deploy("--role", "no-such-role", "--image", "mine", *MODEL)
    assert code == 2 and error.startswith("error: --role no-such-role: its ARN was not found; use the ARN instead.")
    assert deploy("--role", "serving", "--image", "mine", *MODEL)[0] == 0
    (name,) = {name for name in stored(service) if service.client().describe_model(ModelName=name)}
    assert service.client().describe_model(ModelName=name)["ExecutionRoleArn"] == arn


def test_dry_run_prints_valid_requests(tmp_path: Path) -> None:
    flags = ("--subnets", "subnet-1", "--security-groups", "sg-1", "--kms-key", "alias/disk", "--instance-count", 2)
    flags = (*flags, "--capture-uri", "s3://bucket/captured", "--capture-percent", 10, *SCALING, "--update")
    result = run_deploy(tmp_path, *WHERE, *ROLE[:2], *MODEL, *flags, "--instance-type", "ml.g5.xlarge", "--dry-run")
    assert result.returncode == 0, result.stderr
    requests = json.loads(result.stdout)
    assert len(requests) == 5
    for method, request in requests.items():
        service = "application-autoscaling" if "scal" in method else "sagemaker"
        operation = "".join(word.title() for word in method.split("_"))
        shape = boto3.client(service, region_name=REGION).meta.service_model.operation_model(operation).input_shape
        report = ParamValidator().validate(request, shape)
        assert not report.has_errors(), report.generate_report()
    container = requests["create_model"]["PrimaryContainer"]
    assert container["ModelDataUrl"] == MODEL[1]
    assert container["Environment"]["SM_RAYSERVE_APP"] == "deployment:app"
    assert re.search(r"/ray:serve-ml-sagemaker-cuda-v1\.\d+$", container["Image"])
    assert requests["create_model"]["VpcConfig"] == {"Subnets": ["subnet-1"], "SecurityGroupIds": ["sg-1"]}
    (variant,) = requests["create_endpoint_config"]["ProductionVariants"]
    assert (variant["InstanceType"], variant["InitialInstanceCount"]) == ("ml.g5.xlarge", 2)
    # Without it, the image's CUDA would not match the machine's drivers.
    assert variant["InferenceAmiVersion"] == "al2-ami-sagemaker-inference-gpu-3-1"
    assert requests["create_endpoint_config"]["KmsKeyId"] == "alias/disk"
    assert requests["update_endpoint"]["RetainAllVariantProperties"] is True


def test_endpoint_is_created_with_its_image_and_deleted_with_all_that_belongs_to_it(
    deploy: Deploy, service: Endpoints
) -> None:
    code, output, error = deploy(*ROLE, *MODEL, *SCALING, "--capture-uri", "s3://bucket/seen", "--capture-percent", 10)
    assert code == 0, output + error
    command = f"python sagemaker_entry/deploy.py --delete --endpoint cats --region {REGION}"
    # The command comes before the wait, which Ctrl-C may end.
    assert output.splitlines()[-2:] == [f"Delete it: {command}", "Status:    InService"]
    capture = configuration(service)["DataCaptureConfig"]
    assert (capture["DestinationS3Uri"], capture["InitialSamplingPercentage"]) == ("s3://bucket/seen", 10)
    assert scaling(service) == [(1, 4, 300.0)]
    name = current(service)
    assert stored(service) == [name, name]
    code, output, error = deploy("--delete")
    assert (code, error) == (0, "")
    things = ("endpoint cats", f"configuration {name}", f"model {name}", "scaling")
    assert output.splitlines() == [f"Deleted:   {thing}" for thing in things]
    assert (stored(service), scaling(service)) == ([], [])
    assert deploy("--delete") == (0, "There is no endpoint cats, and nothing is left of it.\n", "")


def test_half_created_endpoint_is_deleted(deploy: Deploy, service: Endpoints) -> None:
    container = {"Image": "mine", "ModelDataUrl": MODEL[1]}
    marked = container | {"Environment": ENVIRONMENT}
    # The last one is of another program.
    models = {"cats-20260102030405": marked, "cats-2-20260102030405": marked, "cats-20260102030406": container}
    for name, given in models.items():
        service.client().create_model(ModelName=name, PrimaryContainer=given, ExecutionRoleArn=ROLE[1])
    code, output, error = deploy("--delete")
    assert code == 0, error
    assert output == "Deleted:   model cats-20260102030405\nThere is no endpoint cats.\n"
    assert stored(service) == ["cats-2-20260102030405", "cats-20260102030406"]


def test_rejected_creation_leaves_nothing(deploy: Deploy, service: Endpoints) -> None:
    code, _, error = deploy(*ROLE, *MODEL, "--instance-type", "ml.nonsense.large")
    assert code == 1, error
    assert error.startswith("error: ") and "ml.nonsense.large" in error
    assert stored(service) == []


def test_update_replaces_the_model_and_the_scaling(deploy: Deploy, service: Endpoints) -> None:
    assert deploy(*ROLE, *MODEL, *SCALING)[0] == 0
    first = current(service)
    code, output, error = deploy(*ROLE, *MODEL)
    assert (code, output) == (2, "")
    expected = "endpoint cats exists already (InService): use --update to replace its model, or --delete to delete it."
    assert error == f"error: {expected}\n"
    code, _, error = deploy(*ROLE, *MODEL, "--update")
    assert (code, error) == (2, "error: endpoint cats scales automatically: give --max-instances again.\n")
    new_model = "s3://bucket/other/model.tar.gz"
    flags = ("--instance-type", "ml.m5.large", "--max-instances", 2, "--update")
    code, output, error = deploy(*ROLE, "--model", new_model, *flags)
    assert code == 0, output + error
    second = current(service)
    assert second != first and stored(service) == [second, second]
    model = service.client().describe_model(ModelName=second)
    assert model["PrimaryContainer"]["ModelDataUrl"] == new_model
    assert f"Deleted:   configuration {first}\nDeleted:   model {first}\nStatus:    InService\n" in output
    assert scaling(service) == [(1, 2, 600.0)]
    # AWS changes the instance type only of endpoints that do not scale, and would reset the number of instances.
    ((request, scaling_during_update),) = service.updates
    assert request["RetainAllVariantProperties"] is True
    assert scaling_during_update == 0


@pytest.mark.parametrize("rejected", [True, False], ids=["rejected", "rolled back"])
def test_failed_update_leaves_the_endpoint_as_it_was(rejected: bool, deploy: Deploy, service: Endpoints) -> None:
    assert deploy(*ROLE, *MODEL, *SCALING)[0] == 0
    first = current(service)
    service.rejected, service.failure = rejected, "the container did not answer /ping"
    flags = ("--instance-type", "ml.m5.large", "--max-instances", 2, "--update")
    code, _, error = deploy(*ROLE, *MODEL, *flags)
    assert code == 1
    assert ("no quota" if rejected else "still serves the previous model: the container did not answer /ping") in error
    assert len(error.splitlines()) == 1
    assert current(service) == first and stored(service) == [first, first]
    assert scaling(service) == [(1, 4, 300.0)]


def test_endpoint_of_another_program_is_not_deleted(deploy: Deploy, service: Endpoints) -> None:
    sagemaker = service.client()
    container = {"Image": "mine", "ModelDataUrl": MODEL[1]}
    sagemaker.create_model(ModelName="theirs", PrimaryContainer=container, ExecutionRoleArn=ROLE[1])
    variant = {"VariantName": "AllTraffic", "ModelName": "theirs", "InstanceType": "ml.c5.large"}
    variant["InitialInstanceCount"] = 1  # type: ignore[assignment]
    sagemaker.create_endpoint_config(EndpointConfigName="theirs", ProductionVariants=[variant])
    sagemaker.create_endpoint(EndpointName="cats", EndpointConfigName="theirs")
    code, _, error = deploy("--delete")
    assert code == 2
    assert "has the configuration theirs, which deploy.py did not create" in error
    # An update takes over the endpoint, and leaves what belongs to the other program.
    assert deploy(*ROLE, *MODEL, "--update")[0] == 0
    assert stored(service) == [current(service), current(service), "theirs", "theirs"]


def test_unknown_endpoint_or_job_is_one_line(deploy: Deploy) -> None:
    code, _, error = deploy(*ROLE, *MODEL, "--update")
    assert (code, error) == (2, "error: there is no endpoint cats: leave out --update to create it.\n")
    code, _, error = deploy(*ROLE, "--job", "no-such-job")
    assert code == 1
    assert error.startswith("error: ") and "no-such-job" in error


def test_bad_input_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    result = run_deploy(tmp_path, *ROLE)
    assert result.returncode == 2, result.stdout + result.stderr
    assert result.stderr == "error: expected either --job or --model.\n"
