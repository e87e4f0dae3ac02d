"""The spot agent with an instance metadata service on loopback, and fake ray and sudo commands that record calls."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from support.command import ROOT, wait_until
from support.imds import INTERRUPTION, Server

AGENT = ROOT / "cluster" / "spot_agent.py"
LOST_SECONDS = 1.5
# Fails once for each file named fail*, then records its arguments.
RAY = """#!/bin/sh
cd "$(dirname "$0")"
for file in fail*; do if [ -e "$file" ]; then rm "$file"; echo "no head node" >&2; exit 1; fi; done
printf '%s\\n' "$@" > arguments.new
mv arguments.new arguments
"""
SUDO = """#!/bin/sh
echo "$@" >> "$(dirname "$0")/sudo.log"
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
    for name, script in (("ray", RAY), ("sudo", SUDO)):
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    return folder


@pytest.fixture
def head() -> Iterator[socket.socket]:
    """A port that accepts connections, as Ray's on the head node."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


@pytest.fixture
def agent(imds: Server, ray_folder: Path, head: socket.socket, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The running agent; it logs to the file `log`. Nothing listens at the proxy, which the agent must not use."""
    environment = os.environ | {"PATH": f"{ray_folder}:{os.environ['PATH']}", "http_proxy": "http://127.0.0.1:9"}
    command = [sys.executable, "-I", str(AGENT), "--poll-seconds", "0.1"]
    command += ["--imds", f"http://127.0.0.1:{imds.server_port}"]
    command += ["--head", f"127.0.0.1:{head.getsockname()[1]}", "--lost-minutes", str(LOST_SECONDS / 60)]
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


def test_agent_cancels_the_shutdown_that_guards_the_setup_and_shuts_down_when_the_head_is_lost(
    agent: subprocess.Popen[bytes], ray_folder: Path, head: socket.socket, tmp_path: Path
) -> None:
    calls = ray_folder / "sudo.log"
    wait_until(calls.exists, seconds=10)
    time.sleep(2 * LOST_SECONDS)
    assert calls.read_text() == "shutdown -c\n"
    head.close()
    closed = time.monotonic()
    wait_until(lambda: "shutdown -h now" in calls.read_text(), seconds=10)
    assert time.monotonic() - closed > 0.8 * LOST_SECONDS
    assert "the head is lost: shutting down" in (tmp_path / "log").read_text()
    # On a machine that does not shut down, it tries again.
    assert agent.poll() is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--head", "h:1", "--poll-seconds", "0"), "--poll-seconds 0.0: expected a positive number of seconds."),
        (("--head", "h:1", "--lost-minutes", "0"), "--lost-minutes 0.0: expected a positive number of minutes."),
        (("--head", "10.0.0.5"), "--head 10.0.0.5: expected ADDRESS:PORT."),
    ],
    ids=lambda value: value[-1] if isinstance(value, tuple) else "",
)
def test_bad_flags_are_rejected(flags: tuple[str, ...], message: str) -> None:
    result = subprocess.run([sys.executable, str(AGENT), *flags], capture_output=True, text=True, timeout=10)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].endswith(message)
