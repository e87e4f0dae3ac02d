"""Failures of SageMaker jobs: exit code, failure file and time to stop on every host."""

import copy
import signal
import time
import uuid
from typing import Any

import pytest

from support.command import PATIENCE
from support.container import Container
from support.job_checks import SECRETS, TINY, Simulate, Submit, assert_no_secrets, wait_for
from support.simulated_job import SimulatedJob

pytestmark = pytest.mark.e2e
# An image whose `python` is older than that of the SDK's scripts, `python3`.
OLD_PYTHON = """#!/bin/sh
exec python3 -c '
import runpy, sys
sys.version_info = (3, 9, 18)
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
' "$@"
"""


@pytest.fixture(scope="module")
def submitted(submit: Submit) -> dict[str, Any]:
    """A job with two hosts that trains until something fails."""
    return submit(*TINY, "--epochs", 50, "--batch-size", 4, "--instance-count", 2, "--max-failures", 0)


@pytest.fixture
def request_of_two(submitted: dict[str, Any]) -> dict[str, Any]:
    """The job under a unique name, and therefore with a run of its own."""
    return copy.deepcopy(submitted) | {"TrainingJobName": f"{submitted['TrainingJobName']}-{uuid.uuid4().hex[:6]}"}


@pytest.fixture
def request_of_one(request_of_two: dict[str, Any]) -> dict[str, Any]:
    request_of_two["ResourceConfig"]["InstanceCount"] = 1
    return request_of_two


def start_training(job: SimulatedJob) -> None:
    job.start()
    wait_for(job.hosts[0], "Started:")


def seconds_to_end(job: SimulatedJob) -> float:
    started = time.monotonic()
    job.wait(PATIENCE)
    return time.monotonic() - started


def install_program(host: Container, name: str, text: str) -> None:
    """Put a program into /opt/bin of a host."""
    program = host.root / "opt" / "bin" / name
    program.parent.mkdir()
    program.write_text(text)
    program.chmod(0o755)


def test_training_exception_is_in_every_hosts_failure_file(request_of_two: dict[str, Any], simulate: Simulate) -> None:
    job = simulate(request_of_two)
    for host in job.hosts:
        # A bug in the user's code that prints all variables, and puts a password into the exception.
        file = host.ml / "input" / "data" / "code" / "ray_app" / "vgg_ddp" / "worker" / "train.py"
        text = file.read_text()
        definition = "def train(worker: Worker, state: TrainState) -> Outcome | None:\n"
        assert definition in text
        bug = "    import os\n    print(os.environ)\n    raise ValueError('no row for ' + os.environ['DB_PWD'])\n"
        file.write_text(text.replace(definition, definition + bug))
    job.start(**SECRETS)
    assert job.wait(PATIENCE) == {"algo-1": 1, "algo-2": 1}, job.logs()
    for host in job.hosts:
        assert host.failure and host.failure.startswith("ValueError: no row for ******\n"), host.failure
        assert "train.py" in host.failure
        assert len(host.failure) <= 1024
        assert_no_secrets(host)
    assert "'SSH_PASSPHRASE': '******'" in job.hosts[0].log


def test_packages_that_cannot_be_installed_are_the_reason_on_all_hosts(
    request_of_two: dict[str, Any], simulate: Simulate
) -> None:
    job = simulate(request_of_two)
    for host in job.hosts:
        requirements = host.ml / "input" / "data" / "code" / "sagemaker_entry" / "requirements.txt"
        requirements.write_text(requirements.read_text() + "surely-not-installed==1.0\n")
    # As in a VPC without internet access.
    job.start(PIP_INDEX_URL="http://127.0.0.1:9/simple", PIP_RETRIES="1", PIP_CONFIG_FILE="/dev/null")
    assert job.wait(PATIENCE) == {"algo-1": 17, "algo-2": 17}, job.logs()
    start = "packages could not be installed: pip cannot reach its package index (Failed to establish a new connection"
    for host in job.hosts:
        assert host.failure and host.failure.startswith(start), host.failure
    assert "starting Ray" not in job.hosts[0].log


def test_image_with_an_old_python_is_named(request_of_one: dict[str, Any], simulate: Simulate) -> None:
    job = simulate(request_of_one)
    install_program(job.hosts[0], "python", OLD_PYTHON)
    job.start(path="/opt/bin:")
    assert job.wait(PATIENCE) == {"algo-1": 17}, job.logs()
    assert job.hosts[0].failure == "the image has Python 3.9: expected 3.11 or later; use another --image"


def test_killed_head_stops_the_other_host(request_of_two: dict[str, Any], simulate: Simulate) -> None:
    job = simulate(request_of_two, shm="2g")
    job.start()
    wait_for(job.hosts[0], "All 2 hosts joined")
    job.hosts[0].send_signal(signal.SIGKILL)
    assert seconds_to_end(job) < 60
    assert job.wait(1)["algo-2"] == 13, job.logs()
    assert job.hosts[1].failure and "the head, algo-1, stopped responding" in job.hosts[1].failure


def test_killed_host_is_named_and_stops_the_job(request_of_two: dict[str, Any], simulate: Simulate) -> None:
    job = simulate(request_of_two, shm="2g")
    start_training(job)
    job.hosts[1].send_signal(signal.SIGKILL)
    assert seconds_to_end(job) < 60
    assert job.wait(1)["algo-1"] == 12, job.logs()
    assert job.hosts[0].failure and job.hosts[0].failure.startswith("algo-2 stopped responding")


def test_missing_host_and_broken_gpu_are_named(request_of_two: dict[str, Any], simulate: Simulate) -> None:
    request_of_two["ResourceConfig"]["InstanceCount"] = 3
    job = simulate(request_of_two, shm="2g")
    for host, gpus in zip(job.hosts[:2], (2, 1), strict=True):
        # The entry point counts GPUs with nvidia-smi only.
        listing = "".join(f"echo 'GPU {i}: A10G (UUID: {i})'\n" for i in range(gpus))
        install_program(host, "nvidia-smi", f"#!/bin/sh\n{listing}")
    job.start(job.hosts[:2], path="/opt/bin:", VGG_JOIN_SECONDS="60")
    assert job.wait(PATIENCE) == {"algo-1": 10, "algo-2": 10}, job.logs()
    assert [host.failure for host in job.hosts[:2]] == ["after 60 s, algo-3 did not join; algo-2 has 1 of 2 GPUs"] * 2
    assert "Workers:" not in job.hosts[0].log


def test_missing_head_is_named(request_of_two: dict[str, Any], simulate: Simulate) -> None:
    job = simulate(request_of_two, shm="2g")
    other = job.hosts[1]
    job.start([other], VGG_JOIN_SECONDS="5")
    assert other.wait(PATIENCE) == 10, job.logs()
    assert other.failure and other.failure.startswith("after 5 s, the head, algo-1, does not answer")


def test_sigterm_before_the_head_answers_stops_at_once(request_of_two: dict[str, Any], simulate: Simulate) -> None:
    job = simulate(request_of_two, shm="2g")
    other = job.hosts[1]
    job.start([other])
    wait_for(other, "Executing command")
    time.sleep(3)
    other.send_signal(signal.SIGTERM)
    started = time.monotonic()
    assert other.wait(PATIENCE) == 143, job.logs()
    assert time.monotonic() - started < 15


def test_wrong_channel_is_rejected_on_all_hosts_before_ray_starts(
    request_of_two: dict[str, Any], simulate: Simulate
) -> None:
    (channel,) = [channel for channel in request_of_two["InputDataConfig"] if channel["ChannelName"] == "training"]
    channel["ChannelName"] = "train"
    job = simulate(request_of_two)
    job.start()
    assert job.wait(PATIENCE) == {"algo-1": 2, "algo-2": 2}, job.logs()
    for host in job.hosts:
        assert host.failure and "data channel train: expected one named training" in host.failure
    assert "starting Ray" not in job.hosts[0].log


def test_job_without_data_and_network_fails_instead_of_using_the_sample(
    request_of_one: dict[str, Any], simulate: Simulate
) -> None:
    channels = request_of_one["InputDataConfig"]
    request_of_one["InputDataConfig"] = [channel for channel in channels if channel["ChannelName"] != "training"]
    job = simulate(request_of_one)
    job.start()
    assert job.wait(PATIENCE) == {"algo-1": 2}, job.logs()
    failure = job.hosts[0].failure
    assert failure and failure.startswith("CIFAR-10 is not in --data-dir /tmp/cifar10 and "), failure
    assert len(failure.splitlines()) == 1


def test_unencoded_apostrophe_fails_in_the_sdks_scripts(request_of_one: dict[str, Any], simulate: Simulate) -> None:
    """Why `encode` exists: the SDK's scripts (3.27) fail on an apostrophe, and write no failure file."""
    request_of_one["HyperParameters"]["resume"] = "it's"
    job = simulate(request_of_one)
    job.start()
    assert job.wait(PATIENCE)["algo-1"] != 0
    assert "unexpected EOF while looking for matching" in job.hosts[0].log
    assert job.hosts[0].failure is None
