"""The spot agent against an instance metadata service on loopback, and a ray command that writes down its arguments."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from command import ROOT, wait_until
from imds import INTERRUPTION, Server

AGENT = ROOT / "cluster" / "spot_agent.py"
# Fails as often as there are files named fail*, then notes its arguments.
RAY = """#!/bin/sh
cd "$(dirname "$0")"
for file in fail*; do if [ -e "$file" ]; then rm "$file"; echo "no head node" >&2; exit 1; fi; done
printf '%s\\n' "$@" > arguments.new
mv arguments.new arguments
"""


@pytest.fixture
def imds(tmp_path: Path) -> Iterator[Server]:
    server = Server("127.0.0.1", 0, tmp_path / "imds")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def ray_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "ray").write_text(RAY)
    (folder / "ray").chmod(0o755)
    return folder


@pytest.fixture
def agent(imds: Server, ray_folder: Path, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The agent, running; what it logs is in the file `log`. The proxy that it must not use leads nowhere."""
    environment = os.environ | {"PATH": f"{ray_folder}:{os.environ['PATH']}", "http_proxy": "http://127.0.0.1:9"}
    command = [sys.executable, "-I", str(AGENT), "--poll-seconds", "0.1"]
    command += ["--imds", f"http://127.0.0.1:{imds.server_port}"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stderr=log)
    yield process
    process.kill()
    process.wait()


def announce(imds: Server, content: str) -> None:
    file = imds.folder / INTERRUPTION
    file.parent.mkdir(parents=True, exist_ok=True)
    (file.parent / "new").write_text(content)
    (file.parent / "new").replace(file)


def notice(seconds: float) -> str:
    """What EC2 announces when it takes an instance back in some seconds."""
    at = datetime.now(UTC) + timedelta(seconds=seconds)
    return json.dumps({"action": "terminate", "time": at.strftime("%Y-%m-%dT%H:%M:%SZ")})


def seconds_left(ray_folder: Path) -> int:
    arguments = (ray_folder / "arguments").read_text().splitlines()
    assert arguments[:3] == ["drain-node", "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    return int(arguments[arguments.index("--deadline-remaining-seconds") + 1])


def test_announced_interruption_drains_the_node_with_the_time_that_is_left(
    agent: subprocess.Popen[bytes], imds: Server, ray_folder: Path, tmp_path: Path
) -> None:
    wait_until(lambda: bool(imds.tokens), seconds=10)
    assert agent.poll() is None
    announce(imds, notice(120))
    assert agent.wait(10) == 0
    # 5 s are kept back for the ray command to start.
    assert 110 <= seconds_left(ray_folder) <= 115
    assert "EC2 will terminate this instance" in (tmp_path / "log").read_text()


@pytest.mark.parametrize("status", [401, 500, 0], ids=["token expired", "server error", "hang-up"])
def test_agent_outlives_errors_of_the_metadata_service(
    agent: subprocess.Popen[bytes], imds: Server, ray_folder: Path, status: int
) -> None:
    wait_until(lambda: bool(imds.tokens), seconds=10)
    if status == 401:
        imds.tokens.clear()
    imds.failures += [status] * 3
    wait_until(lambda: not imds.failures, seconds=10)
    announce(imds, notice(120))
    assert agent.wait(10) == 0
    assert seconds_left(ray_folder) > 100


def test_agent_outlives_an_announcement_that_makes_no_sense(
    agent: subprocess.Popen[bytes], imds: Server, ray_folder: Path, tmp_path: Path
) -> None:
    announce(imds, "{")
    wait_until(lambda: "JSONDecodeError" in (tmp_path / "log").read_text(), seconds=10)
    announce(imds, '{"action": "terminate"}')
    wait_until(lambda: "KeyError" in (tmp_path / "log").read_text(), seconds=10)
    announce(imds, notice(120))
    assert agent.wait(10) == 0
    assert seconds_left(ray_folder) > 100


def test_drain_that_fails_is_tried_again(
    agent: subprocess.Popen[bytes], imds: Server, ray_folder: Path, tmp_path: Path
) -> None:
    for number in range(2):
        (ray_folder / f"fail{number}").touch()
    announce(imds, notice(120))
    assert agent.wait(10) == 0
    assert seconds_left(ray_folder) > 100
    assert (tmp_path / "log").read_text().count("no head node") == 2


def test_time_that_has_passed_leaves_a_second(agent: subprocess.Popen[bytes], imds: Server, ray_folder: Path) -> None:
    announce(imds, notice(-30))
    assert agent.wait(10) == 0
    assert seconds_left(ray_folder) == 1


def test_poll_that_never_waits_is_refused() -> None:
    command = [sys.executable, str(AGENT), "--poll-seconds", "0"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=10)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].endswith("--poll-seconds 0.0: expected a positive number of seconds.")
