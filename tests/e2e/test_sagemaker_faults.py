"""What a SageMaker job does when something goes wrong: exit code, failure text and time on every host."""

import copy
import signal
import time
import uuid
from typing import Any

import pytest

from job_checks import TINY, Simulate, Submit, wait_for
from simulated_job import SimulatedJob

pytestmark = pytest.mark.e2e
SECRET = "correct-horse-battery"


@pytest.fixture(scope="module")
def submitted(submit: Submit) -> dict[str, Any]:
    """A job of two hosts that trains until it is disturbed."""
    return submit(*TINY, "--epochs", 50, "--batch-size", 4, "--instance-count", 2, "--max-failures", 0)


@pytest.fixture
def request_of_two(submitted: dict[str, Any]) -> dict[str, Any]:
    """The job under a name of the test's own: another name is another run."""
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
    job.wait(120)
    return time.monotonic() - started


def test_exception_of_the_training_code_reaches_every_hosts_failure_file(
    request_of_two: dict[str, Any], simulate: Simulate
) -> None:
    job = simulate(request_of_two)
    for host in job.hosts:
        # The user's mistake, and a careless one: the message holds a password.
        file = host.ml / "input" / "data" / "code" / "ray_app" / "vgg_ddp" / "worker.py"
        text = file.read_text()
        place = "    def train_epoch(self) -> Outcome | None:\n"
        assert place in text
        mistake = "        import os\n        raise ValueError('no row for ' + os.environ['DB_PASSWORD'])\n"
        file.write_text(text.replace(place, place + mistake))
    job.start(DB_PASSWORD=SECRET)
    assert job.wait(300) == {"algo-1": 1, "algo-2": 1}, job.logs()
    for host in job.hosts:
        assert host.failure and host.failure.startswith("ValueError: no row for ******\n"), host.failure
        assert "worker.py" in host.failure
        assert len(host.failure) <= 1024
        assert SECRET not in host.log


def test_killed_head_ends_the_other_host(request_of_two: dict[str, Any], simulate: Simulate) -> None:
    job = simulate(request_of_two, shm="2g")
    start_training(job)
    job.hosts[0].send_signal(signal.SIGKILL)
    assert seconds_to_end(job) < 60
    assert job.wait(1)["algo-2"] == 13, job.logs()
    assert job.hosts[1].failure and "algo-1, the head, fell silent" in job.hosts[1].failure


def test_killed_host_ends_the_job_and_is_named(request_of_two: dict[str, Any], simulate: Simulate) -> None:
    job = simulate(request_of_two, shm="2g")
    start_training(job)
    job.hosts[1].send_signal(signal.SIGKILL)
    assert seconds_to_end(job) < 60
    assert job.wait(1)["algo-1"] == 12, job.logs()
    assert job.hosts[0].failure and job.hosts[0].failure.startswith("algo-2 fell silent")


def test_host_that_never_joins_is_named(request_of_two: dict[str, Any], simulate: Simulate) -> None:
    job = simulate(request_of_two, shm="2g")
    head = job.hosts[0]
    job.start([head], VGG_JOIN_SECONDS="15")
    assert head.wait(200) == 10, job.logs()
    assert head.failure == "after 15 s, algo-2 did not join"
    assert "Workers:" not in head.log


def test_host_with_a_broken_gpu_is_named(request_of_two: dict[str, Any], simulate: Simulate) -> None:
    job = simulate(request_of_two, shm="2g")
    for host, gpus in zip(job.hosts, (2, 1), strict=True):
        # What nvidia-smi lists is all that the entry knows of GPUs.
        program = host.root / "opt" / "bin" / "nvidia-smi"
        program.parent.mkdir()
        program.write_text("#!/bin/sh\n" + "".join(f"echo 'GPU {i}: A10G (UUID: {i})'\n" for i in range(gpus)))
        program.chmod(0o755)
    job.start(path="/opt/bin:", VGG_JOIN_SECONDS="40")
    assert job.wait(200) == {"algo-1": 10, "algo-2": 10}, job.logs()
    assert [host.failure for host in job.hosts] == ["after 40 s, algo-2 has 1 of 2 GPUs"] * 2


def test_host_whose_head_never_starts_says_so(request_of_two: dict[str, Any], simulate: Simulate) -> None:
    job = simulate(request_of_two, shm="2g")
    other = job.hosts[1]
    job.start([other], VGG_JOIN_SECONDS="5")
    assert other.wait(60) == 10, job.logs()
    assert other.failure and other.failure.startswith("after 5 s, algo-1, the head, does not answer")


def test_sigterm_before_the_job_began_stops_at_once(request_of_two: dict[str, Any], simulate: Simulate) -> None:
    job = simulate(request_of_two, shm="2g")
    other = job.hosts[1]
    job.start([other])
    wait_for(other, "Executing command")
    time.sleep(3)
    other.send_signal(signal.SIGTERM)
    started = time.monotonic()
    assert other.wait(60) == 143, job.logs()
    assert time.monotonic() - started < 15


def test_wrong_channel_is_refused_by_all_hosts_before_ray_starts(
    request_of_two: dict[str, Any], simulate: Simulate
) -> None:
    (channel,) = [channel for channel in request_of_two["InputDataConfig"] if channel["ChannelName"] == "training"]
    channel["ChannelName"] = "train"
    job = simulate(request_of_two)
    job.start()
    assert job.wait(60) == {"algo-1": 2, "algo-2": 2}, job.logs()
    for host in job.hosts:
        assert host.failure and "data channel train: expected one called training" in host.failure
    assert "starting Ray" not in job.hosts[0].log


def test_newline_in_a_hyperparameter_is_one_clear_line(request_of_one: dict[str, Any], simulate: Simulate) -> None:
    request_of_one["HyperParameters"]["epochs"] = "1\n2"
    job = simulate(request_of_one)
    job.start()
    assert job.wait(200) == {"algo-1": 2}, job.logs()
    failure = job.hosts[0].failure
    assert failure and "--epochs" in failure and len(failure.splitlines()) == 1, failure


def test_apostrophe_that_submit_did_not_encode_never_reaches_the_entry(
    request_of_one: dict[str, Any], simulate: Simulate
) -> None:
    """Why `encode` is there: the SDK's own scripts fail on it, and leave no reason."""
    request_of_one["HyperParameters"]["resume"] = "it's"
    job = simulate(request_of_one)
    job.start()
    assert job.wait(60)["algo-1"] != 0
    assert "unexpected EOF while looking for matching" in job.hosts[0].log
    assert job.hosts[0].failure is None
