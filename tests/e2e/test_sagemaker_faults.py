"""Failures of SageMaker jobs: exit code, failure file and time to stop on every host."""

import copy
import signal
import time
import uuid
from typing import Any

import pytest

from support.command import PATIENCE
from support.job_checks import TINY, Simulate, Submit, wait_for
from support.simulated_job import SimulatedJob

pytestmark = pytest.mark.e2e
SECRET = "correct-horse-battery"


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


def test_training_exception_is_in_every_hosts_failure_file(request_of_two: dict[str, Any], simulate: Simulate) -> None:
    job = simulate(request_of_two)
    for host in job.hosts:
        # A bug in the user's code that puts a password into the exception.
        file = host.ml / "input" / "data" / "code" / "ray_app" / "vgg_ddp" / "worker" / "train.py"
        text = file.read_text()
        definition = "def train(worker: Worker, state: TrainState) -> Outcome | None:\n"
        assert definition in text
        bug = "    import os\n    raise ValueError('no row for ' + os.environ['DB_PASSWORD'])\n"
        file.write_text(text.replace(definition, definition + bug))
    job.start(DB_PASSWORD=SECRET)
    assert job.wait(PATIENCE) == {"algo-1": 1, "algo-2": 1}, job.logs()
    for host in job.hosts:
        assert host.failure and host.failure.startswith("ValueError: no row for ******\n"), host.failure
        assert "train.py" in host.failure
        assert len(host.failure) <= 1024
        assert SECRET not in host.log


def test_killed_head_stops_the_other_host(request_of_two: dict[str, Any], simulate: Simulate) -> None:
    job = simulate(request_of_two, shm="2g")
    start_training(job)
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
        program = host.root / "opt" / "bin" / "nvidia-smi"
        program.parent.mkdir()
        program.write_text("#!/bin/sh\n" + "".join(f"echo 'GPU {i}: A10G (UUID: {i})'\n" for i in range(gpus)))
        program.chmod(0o755)
    job.start(job.hosts[:2], path="/opt/bin:", VGG_JOIN_SECONDS="120")
    assert job.wait(PATIENCE) == {"algo-1": 10, "algo-2": 10}, job.logs()
    assert [host.failure for host in job.hosts[:2]] == ["after 120 s, algo-3 did not join; algo-2 has 1 of 2 GPUs"] * 2
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


def test_newline_in_a_hyperparameter_is_reported_in_one_line(
    request_of_one: dict[str, Any], simulate: Simulate
) -> None:
    request_of_one["HyperParameters"]["epochs"] = "1\n2"
    job = simulate(request_of_one)
    job.start()
    assert job.wait(PATIENCE) == {"algo-1": 2}, job.logs()
    failure = job.hosts[0].failure
    assert failure and "--epochs" in failure and len(failure.splitlines()) == 1, failure


def test_unencoded_apostrophe_fails_in_the_sdks_scripts(request_of_one: dict[str, Any], simulate: Simulate) -> None:
    """Why `encode` exists: the SDK's scripts (3.27) fail on an apostrophe, and write no failure file."""
    request_of_one["HyperParameters"]["resume"] = "it's"
    job = simulate(request_of_one)
    job.start()
    assert job.wait(PATIENCE)["algo-1"] != 0
    assert "unexpected EOF while looking for matching" in job.hosts[0].log
    assert job.hosts[0].failure is None
