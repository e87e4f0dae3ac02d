"""The spot agent with an instance metadata service on loopback and a fake ray command that records its arguments."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from support.command import ROOT, wait_until
from support.imds import INTERRUPTION, Server

AGENT = ROOT / "cluster" / "spot_agent.py"
# Fails once for each file named fail*, then records its arguments.
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
    """The running agent; it logs to the file `log`. Nothing listens at the proxy, which the agent must not use."""
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
    """EC2's notice that it will reclaim the instance in `seconds`."""
    at = datetime.now(UTC) + timedelta(seconds=seconds)
    return json.dumps({"action": "terminate", "time": at.strftime("%Y-%m-%dT%H:%M:%SZ")})


def seconds_left(ray_folder: Path) -> int:
    arguments = (ray_folder / "arguments").read_text().splitlines()
    assert arguments[:3] == ["drain-node", "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    return int(arguments[arguments.index("--deadline-remaining-seconds") + 1])


def test_interruption_notice_drains_the_node_with_the_remaining_time(
    agent: subprocess.Popen[bytes], imds: Server, ray_folder: Path, tmp_path: Path
) -> None:
    wait_until(lambda: bool(imds.tokens), seconds=10)
    assert agent.poll() is None
    announce(imds, notice(120))
    assert agent.wait(10) == 0
    # 15 s are reserved for the ray command to start and for Ray to stop the workers.
    assert 100 <= seconds_left(ray_folder) <= 105
    assert "EC2 will terminate this instance" in (tmp_path / "log").read_text()


@pytest.mark.parametrize("status", [401, 500, 0], ids=["token expired", "server error", "hang-up"])
def test_agent_survives_errors_of_the_metadata_service(
    agent: subprocess.Popen[bytes], imds: Server, ray_folder: Path, status: int
) -> None:
    wait_until(lambda: bool(imds.tokens), seconds=10)
    if status == 401:
        imds.tokens.clear()
    imds.failures += [status] * 3
    wait_until(lambda: not imds.failures, seconds=10)
    announce(imds, notice(120))
    assert agent.wait(10) == 0
    assert seconds_left(ray_folder) > 90


def test_agent_survives_malformed_notices(
    agent: subprocess.Popen[bytes], imds: Server, ray_folder: Path, tmp_path: Path
) -> None:
    announce(imds, "{")
    wait_until(lambda: "JSONDecodeError" in (tmp_path / "log").read_text(), seconds=10)
    announce(imds, '{"action": "terminate"}')
    wait_until(lambda: "KeyError" in (tmp_path / "log").read_text(), seconds=10)
    announce(imds, notice(120))
    assert agent.wait(10) == 0
    assert seconds_left(ray_folder) > 90


def test_failed_drain_is_retried(
    agent: subprocess.Popen[bytes], imds: Server, ray_folder: Path, tmp_path: Path
) -> None:
    for number in range(2):
        (ray_folder / f"fail{number}").touch()
    announce(imds, notice(120))
    assert agent.wait(10) == 0
    assert seconds_left(ray_folder) > 90
    assert (tmp_path / "log").read_text().count("no head node") == 2


def test_deadline_in_the_past_leaves_one_second(agent: subprocess.Popen[bytes], imds: Server, ray_folder: Path) -> None:
    announce(imds, notice(-30))
    assert agent.wait(10) == 0
    assert seconds_left(ray_folder) == 1


def test_poll_interval_of_zero_is_rejected() -> None:
    command = [sys.executable, str(AGENT), "--poll-seconds", "0"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=10)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].endswith("--poll-seconds 0.0: expected a positive number of seconds.")
