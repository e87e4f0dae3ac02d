"""A SageMaker on this machine: moto's server accepts jobs, and containers made of namespaces run them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.command import free_port, submit_to_sagemaker
from support.container import Network, missing_requirement, network
from support.job_checks import SAMPLE, TINY, OneHost, Simulate, Submit, stop_and_restart
from support.s3_server import BUCKET, CREDENTIALS, client, s3_server
from support.simulated_job import SimulatedJob, simulated

ROLE = "arn:aws:iam::123456789012:role/training"
MACHINE = ("--role", ROLE, "--region", CREDENTIALS["AWS_DEFAULT_REGION"], "--bucket", BUCKET, "--instance-type")


@pytest.fixture(scope="session")
def sdk_environment(private_home: Path) -> dict[str, str]:
    """Fake credentials, and the SDK's telemetry turned off."""
    config = private_home / "sagemaker.yaml"
    config.write_text(
        json.dumps({"SchemaVersion": "1.0", "SageMaker": {"PythonSDK": {"Modules": {"TelemetryOptOut": True}}}})
    )
    return CREDENTIALS | {"SAGEMAKER_USER_CONFIG_OVERRIDE": str(config)}


@pytest.fixture(scope="session")
def net() -> Iterator[Network]:
    reason = missing_requirement()
    if reason:
        pytest.skip(reason)
    with network() as net:
        yield net


@pytest.fixture(scope="session")
def aws(net: Network, tiny_data: Path) -> Iterator[str]:
    """Endpoint of moto's server, which the containers can reach. Its bucket holds the tiny data set."""
    with s3_server(free_port(), net.gateway) as url:
        for file in tiny_data.iterdir():
            client(url).upload_file(str(file), BUCKET, f"tiny/{file.name}")
        yield url


@pytest.fixture(scope="session")
def job_environment(sdk_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment variables that submit.py sends with a job, which moto's descriptions lack."""
    cwd = tmp_path_factory.mktemp("dry-run")
    result = submit_to_sagemaker(cwd, *MACHINE, "ml.c5.xlarge", *TINY, "--dry-run", **sdk_environment)
    request: dict[str, Any] = json.loads(result.stdout[result.stdout.index("{") :])
    environment: dict[str, str] = request["Environment"]
    return environment


@pytest.fixture(scope="session")
def submit(
    aws: str,
    sdk_environment: dict[str, str],
    job_environment: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Submit:
    """Submits a job with submit.py, and returns SageMaker's description of the job."""

    def run(*flags: object, instance_type: str = "ml.c5.xlarge") -> dict[str, Any]:
        cwd = tmp_path_factory.mktemp("submit")
        environment = sdk_environment | {"AWS_ENDPOINT_URL": aws}
        result = submit_to_sagemaker(cwd, *MACHINE, instance_type, "--no-wait", *flags, **environment)
        assert result.returncode == 0, result.stdout + result.stderr
        (name,) = [line.split()[1] for line in result.stdout.splitlines() if line.startswith("Job: ")]
        sagemaker = client(aws, "sagemaker")
        answer: dict[str, Any] = sagemaker.describe_training_job(TrainingJobName=name)
        return answer | {"Environment": job_environment}

    return run


@pytest.fixture
def simulate(net: Network, aws: str, tmp_path: Path) -> Iterator[Simulate]:
    """Prepares the hosts of a job, and removes them after the test."""
    open_jobs = []

    def prepare(request: dict[str, Any], name: str = "job", shm: str = "64m") -> SimulatedJob:
        context = simulated(SimulatedJob(request, tmp_path / name, net, aws, shm))
        open_jobs.append(context)
        return context.__enter__()

    yield prepare
    for context in open_jobs:
        context.__exit__(None, None, None)


@pytest.fixture(scope="session")
def one_host(net: Network, aws: str, submit: Submit, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OneHost]:
    """A job with one host that trains on the bundled sample, is stopped, and is restarted."""
    request = submit(*SAMPLE, "--num-workers", 2, "--spot")
    folder = tmp_path_factory.mktemp("one-host")
    with (
        simulated(SimulatedJob(request, folder / "first", net, aws)) as first,
        simulated(SimulatedJob(request, folder / "second", net, aws)) as second,
    ):
        yield stop_and_restart(request, first, second)
