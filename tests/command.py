"""The project's commands, as tests start them."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
MAIN = ROOT / "ray_app" / "main.py"
PREDICT = ROOT / "ray_app" / "predict.py"
SAMPLE = ROOT / "ray_app" / "sample"
MARK = "VGG_TEST_MARK"


def run_main(*flags: object, cwd: Path, timeout: float = 300, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a person does, and wait for it."""
    command = [sys.executable, str(MAIN), *map(str, flags)]
    return subprocess.run(
        command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, timeout=timeout
    )


def processes_marked(mark: str) -> dict[int, str]:
    """Process ids and command lines of the live processes that inherited an environment with this mark."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            environment = (entry / "environ").read_bytes()
            command = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if f"{MARK}={mark}\0".encode() in environment and command:
            found[int(entry.name)] = command.replace(b"\0", b" ").decode(errors="replace")
    return found


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    """Wait for a condition; fail the test if it does not come true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.1)


def free_port() -> int:
    """A port of this machine that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def open_to_the_network(mark: str) -> list[str]:
    """Command lines of the marked processes, one for each port on which they listen beyond loopback."""
    found = []
    for pid, command in processes_marked(mark).items():
        try:
            connections = psutil.Process(pid).net_connections(kind="inet")
        except psutil.NoSuchProcess:
            continue
        for connection in connections:
            if connection.status == psutil.CONN_LISTEN and not connection.laddr.ip.endswith(("127.0.0.1", "::1")):
                found.append(command)
    return found
