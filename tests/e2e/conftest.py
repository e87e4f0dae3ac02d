"""A SageMaker of this machine's own: moto's server takes the jobs, and namespaces run them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from command import free_port, submit_to_sagemaker
from container import Network, network, why_not
from job_checks import SAMPLE, OneHost, Simulate, Submit, stop_and_restart
from s3_server import BUCKET, CREDENTIALS, client, s3_server
from simulated_job import SimulatedJob, simulated

ROLE = "arn:aws:iam::123456789012:role/training"
MACHINE = ("--role", ROLE, "--region", CREDENTIALS["AWS_DEFAULT_REGION"], "--bucket", BUCKET, "--instance-type")


@pytest.fixture(scope="session")
def sdk_environment(private_home: Path) -> dict[str, str]:
    """Fake credentials, and no telemetry of the SDK."""
    config = private_home / "sagemaker.yaml"
    config.write_text(
        json.dumps({"SchemaVersion": "1.0", "SageMaker": {"PythonSDK": {"Modules": {"TelemetryOptOut": True}}}})
    )
    return CREDENTIALS | {"SAGEMAKER_USER_CONFIG_OVERRIDE": str(config)}


@pytest.fixture(scope="session")
def net() -> Iterator[Network]:
    reason = why_not()
    if reason:
        pytest.skip(reason)
    with network() as net:
        yield net


@pytest.fixture(scope="session")
def aws(net: Network, tiny_data: Path) -> Iterator[str]:
    """Endpoint of moto's server, which the containers can reach; the tiny images are there."""
    with s3_server(free_port(), net.gateway) as url:
        for file in tiny_data.iterdir():
            client(url).upload_file(str(file), BUCKET, f"tiny/{file.name}")
        yield url


@pytest.fixture(scope="session")
def submit(aws: str, sdk_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Submit:
    """Submits a job with the command; gives what SageMaker says of it."""

    def run(*flags: object, instance_type: str = "ml.c5.xlarge") -> dict[str, Any]:
        cwd = tmp_path_factory.mktemp("submit")
        environment = sdk_environment | {"AWS_ENDPOINT_URL": aws}
        result = submit_to_sagemaker(cwd, *MACHINE, instance_type, *flags, **environment)
        assert result.returncode == 0, result.stdout + result.stderr
        (name,) = [line.split()[1] for line in result.stdout.splitlines() if line.startswith("Job: ")]
        sagemaker = client(aws, "sagemaker")
        answer: dict[str, Any] = sagemaker.describe_training_job(TrainingJobName=name)
        return answer

    return run


@pytest.fixture
def simulate(net: Network, aws: str, tmp_path: Path) -> Iterator[Simulate]:
    """Lays out the hosts of a job; they are gone when the test ends."""
    open_jobs = []

    def lay_out(request: dict[str, Any], name: str = "job", shm: str = "64m") -> SimulatedJob:
        context = simulated(SimulatedJob(request, tmp_path / name, net, aws, shm))
        open_jobs.append(context)
        return context.__enter__()

    yield lay_out
    for context in open_jobs:
        context.__exit__(None, None, None)


@pytest.fixture(scope="session")
def one_host(net: Network, aws: str, submit: Submit, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OneHost]:
    """A job of one host on the bundled sample, stopped and started again."""
    request = submit(*SAMPLE, "--num-workers", 2, "--spot")
    folder = tmp_path_factory.mktemp("one-host")
    with (
        simulated(SimulatedJob(request, folder / "first", net, aws)) as first,
        simulated(SimulatedJob(request, folder / "second", net, aws)) as second,
    ):
        yield stop_and_restart(request, first, second)
