"""SageMaker jobs on several hosts, from submission to model, in simulated containers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from support.command import PATIENCE, ROOT
from support.job_checks import (
    TINY,
    Simulate,
    Submit,
    assert_model,
    steps,
    stop_and_measure,
    token_of,
    wait_for,
)

pytestmark = pytest.mark.e2e
# A Ray driver without the token.
INTRUDER = "import ray; ray.init('{address}:6379', logging_level='ERROR')"


def test_two_hosts_resume_from_s3_and_reject_a_driver_without_the_token(submit: Submit, simulate: Simulate) -> None:
    # With an apostrophe, which the SDK's scripts in the container do not quote.
    uri = "s3://bucket/it's/checkpoints"
    request = submit(*TINY, "--epochs", 1, "--batch-size", 2, "--instance-count", 2, "--checkpoint-uri", uri)
    job = simulate(request, shm="2g")
    job.start()
    head, other = job.hosts
    wait_for(head, "All 2 hosts joined")
    token = token_of(other)
    assert token == token_of(head) and len(token) == 64
    intruder = other.run("env", "-u", "RAY_AUTH_TOKEN", sys.executable, "-c", INTRUDER.format(address=head.address))
    assert intruder.returncode != 0
    assert "auth" in intruder.stderr.lower(), intruder.stderr
    wait_for(head, "Started:")
    codes, seconds = stop_and_measure(job)
    assert codes == {"algo-1": 143, "algo-2": 143}, job.logs()
    assert seconds < 60
    (saved,) = steps(r"Stopped after step (\d+)", head)
    assert head.failure == other.failure
    assert not any(any((host.ml / "checkpoints").iterdir()) for host in job.hosts)

    again = simulate(request, "again", shm="2g")
    again.start()
    assert again.wait(PATIENCE) == {"algo-1": 0, "algo-2": 0}, again.logs()
    assert steps(r"Resumed at step (\d+)", again.hosts[0]) == [saved]
    assert_model(again.hosts[0])
    assert not list((again.hosts[1].ml / "model").iterdir())
    assert token not in json.dumps(request, default=str) + head.log + other.log


def test_coordinator_runs_the_driver_and_two_hosts_train(submit: Submit, simulate: Simulate) -> None:
    request = submit(*TINY, "--epochs", 1, "--instance-count", 2, "--coordinator-instance-type", "ml.m5.large")
    job = simulate(request, shm="2g")
    job.start()
    assert job.wait(PATIENCE) == {"algo-1": 0, "algo-2": 0, "algo-3": 0}, job.logs()
    # The coordinator is identified by its group, not by its number.
    coordinator = job.hosts[2]
    assert "All 3 hosts joined" in coordinator.log
    assert "Workers:   2 on CPU" in coordinator.log
    assert_model(coordinator)


def test_only_source_code_and_the_secret_are_uploaded(submit: Submit, simulate: Simulate) -> None:
    host = simulate(submit(*TINY)).hosts[0]
    code = host.ml / "input" / "data" / "code"
    assert {path.name for path in code.iterdir()} == {"ray_app", "sagemaker_entry"}
    tracked = subprocess.run(
        ["git", "ls-files", "ray_app", "sagemaker_entry"], cwd=ROOT, capture_output=True, text=True
    )
    sent = {str(path.relative_to(code)) for path in code.rglob("*") if path.is_file()}
    assert sent - set(tracked.stdout.split()) == {"sagemaker_entry/job-secret"}
    assert len((code / "sagemaker_entry" / "job-secret").read_bytes()) == 32
    assert not Path(ROOT, "sagemaker_entry", "job-secret").exists()
