"""Checks that the tests of SageMaker jobs share."""

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from support.command import PATIENCE, PREDICT, wait_until
from support.container import Container
from support.simulated_job import SimulatedJob

Submit = Callable[..., dict[str, Any]]
"""Submits a job with these flags, and returns its description."""
Simulate = Callable[..., SimulatedJob]
"""Prepares the hosts of a job."""
TINY = ("--data", "s3://bucket/tiny", "--recipe", "classic", "--precision", "fp32")
SAMPLE = ("--data", "sample", "--recipe", "classic", "--precision", "fp32", "--epochs", 1, "--batch-size", 100)

# Variables whose values must not appear anywhere. The exception of a worker contains one of them.
SECRETS = {
    name: f"{name.lower()}-correct-horse"
    for name in ("DB_PASSWORD", "DB_PWD", "SSH_PASSPHRASE", "MYSQL_PASSWD", "AWS_SECRET_ACCESS_KEY", "MY_API_KEY")
} | {"PIP_EXTRA_INDEX_URL": "http://aws:index-correct-horse@127.0.0.1:9/simple"}


def assert_no_secrets(host: Container) -> None:
    """Assert that no secret is in the host's log, its failure file, or its results."""
    files = [host.root / "log", *(file for file in (host.ml / "output").rglob("*") if file.is_file())]
    leaks = [file for file in files if b"correct-horse" in file.read_bytes()]
    assert not leaks, [line for line in leaks[0].read_text(errors="replace").splitlines() if "correct-horse" in line]


def assert_model(host: Container) -> None:
    """Assert that the host wrote a model that predict.py can load, the serving code, and the results."""
    names = {str(path.relative_to(host.ml)) for path in host.ml.glob("model/**/*") if path.is_file()}
    names |= {str(path.relative_to(host.ml)) for path in host.ml.glob("output/data/*")}
    assert names >= {"model/model.safetensors", "model/metrics.csv", "model/code/inference.py"}
    assert names >= {"output/data/metrics.csv", "output/data/curves.png", "output/data/config.json"}
    # launch.py copies them, not main.py.
    assert "model of the job" not in host.log
    command = [sys.executable, str(PREDICT), str(host.ml / "model"), "--data", "sample"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 0, result.stderr
    assert "of 1,000 test images" in result.stdout


def wait_for(host: Container, text: str, seconds: float = 240) -> None:
    """Wait until the host has printed a text; fail if it exits first."""
    wait_until(lambda: text in host.log or host.exited(), seconds)
    assert text in host.log, host.log[-6000:]


def steps(pattern: str, host: Container) -> list[int]:
    """The step numbers that a pattern captures in the host's output."""
    return [int(step) for step in re.findall(pattern, host.log)]


def token_of(host: Container) -> str:
    """The job's token, from the environment of one of its processes."""
    result = host.run("sh", "-c", "cat /proc/[0-9]*/environ | tr '\\0' '\\n' | grep -m1 ^RAY_AUTH_TOKEN=")
    return result.stdout.strip().partition("=")[2]


def stop_and_measure(job: SimulatedJob) -> tuple[dict[str, int], float]:
    """Send SIGTERM to all hosts; return their exit codes, and the seconds until all had exited."""
    started = time.monotonic()
    job.stop()
    return job.wait(PATIENCE), time.monotonic() - started


# Requests a URL with headers, and prints the status.
REQUEST = """
import ast, sys, urllib.error, urllib.request
request = urllib.request.Request(sys.argv[1], headers=ast.literal_eval(sys.argv[2]))
try:
    print(urllib.request.urlopen(request).status)
except urllib.error.HTTPError as error:
    print(error.code)
"""
# Prints the command line of each process that listens on more than the loopback interface.
LISTENING = """
import psutil
for connection in psutil.net_connections("inet"):
    if connection.status == psutil.CONN_LISTEN and not connection.laddr.ip.endswith(("127.0.0.1", "::1")):
        print(" ".join(psutil.Process(connection.pid).cmdline()))
"""


@dataclass(frozen=True)
class OneHost:
    """What was observed of a job with one host that got SIGTERM during training and was restarted."""

    request: dict[str, Any]
    first: Container
    first_code: int
    seconds_to_stop: float
    second: Container
    second_code: int
    token: str
    exposed: list[str]
    dashboard_without_token: str
    dashboard_with_token: str


def stop_and_restart(request: dict[str, Any], first: SimulatedJob, second: SimulatedJob) -> OneHost:
    """Run a job with one host, stop it during training, and run it again with its checkpoints."""
    first.start()
    (host,), (again,) = first.hosts, second.hosts
    wait_for(host, "Started:")
    token = token_of(host)
    exposed = host.run(sys.executable, "-c", LISTENING).stdout.splitlines()
    dashboard = "http://127.0.0.1:8265/api/version"
    without, with_token = (
        host.run(sys.executable, "-c", REQUEST, dashboard, str(headers)).stdout.strip()
        for headers in ({}, {"Authorization": f"Bearer {token}"})
    )
    codes, seconds = stop_and_measure(first)
    # SageMaker copies them through S3.
    shutil.copytree(host.ml / "checkpoints", again.ml / "checkpoints", dirs_exist_ok=True)
    second.start()
    (second_code,) = second.wait(PATIENCE).values()
    return OneHost(request, host, codes[host.name], seconds, again, second_code, token, exposed, without, with_token)
