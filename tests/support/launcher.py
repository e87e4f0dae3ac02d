"""Run Ray's cluster commands and the project's scripts as on a user's laptop."""

import http.client
import os
import pty
import secrets
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from support.command import PATIENCE, ROOT, free_port, read_terminal, wait_until
from support.ssh_hosts import Host

RAY = str(Path(sys.executable).with_name("ray"))
SUBMIT = str(ROOT / "cluster" / "submit.sh")
DOWN = str(ROOT / "cluster" / "down.sh")


@dataclass(frozen=True)
class Laptop:
    """A private home with a token, and a cluster file. Commands run in the root of the repository."""

    home: Path
    cluster_file: Path
    environment: dict[str, str] = field(default_factory=dict)

    @classmethod
    def make(cls, home: Path, config: dict[str, Any], **environment: str) -> "Laptop":
        token = home / ".ray" / "auth_token"
        token.parent.mkdir(parents=True, mode=0o700)
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        # The hosts share this environment and have no network to change it: pin the installed versions. A new process
        # lists them, because setuptools may have added its vendored packages to the path of this one.
        constraints = home / "constraints.txt"
        with constraints.open("w") as file:
            subprocess.run([sys.executable, "-m", "pip", "list", "--format=freeze"], stdout=file, check=True)
        config["file_mounts"]["~/vgg-ddp-node/constraints.txt"] = str(constraints)
        laptop = cls(home, home / "cluster.yaml", environment)
        laptop.cluster_file.write_text(yaml.safe_dump(config))
        return laptop

    @property
    def token(self) -> str:
        return (self.home / ".ray" / "auth_token").read_text()

    def variables(self) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        own = {"HOME": str(self.home), "RAY_TMPDIR": str(self.home), "TMPDIR": str(self.home), "PATH": path}
        return os.environ | own | self.environment

    def start(self, *command: object, log: Path) -> subprocess.Popen[bytes]:
        """Start a command in the background; its output goes to the file."""
        with log.open("wb") as output:
            return subprocess.Popen(
                [str(part) for part in command],
                cwd=ROOT,
                env=self.variables(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def run(self, *command: object) -> subprocess.CompletedProcess[str]:
        """Run a command and wait for it; stdout includes stderr."""
        return subprocess.run(
            [str(part) for part in command],
            cwd=ROOT,
            env=self.variables(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE,
        )

    def up(self) -> None:
        result = self.run(RAY, "up", "--yes", "--no-config-cache", self.cluster_file)
        assert result.returncode == 0, result.stdout[-5000:]

    def exec(self, command: str) -> str:
        """Run a command on the head node; return its output, including that of the ray command."""
        result = self.run(RAY, "exec", "--no-config-cache", self.cluster_file, command)
        assert result.returncode == 0, result.stdout[-5000:]
        return result.stdout

    def attach(self, typed: str) -> str:
        """Type this into a terminal on the head node; return what the terminal shows."""
        ours, theirs = pty.openpty()
        command = [RAY, "attach", "--no-config-cache", str(self.cluster_file)]
        process = subprocess.Popen(
            command, cwd=ROOT, env=self.variables(), stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
        )
        os.close(theirs)
        os.write(ours, typed.encode())
        shown = read_terminal(ours)
        assert process.wait(PATIENCE) == 0, shown
        return shown

    @contextmanager
    def dashboard(self, remote_port: int = 8265) -> Iterator[str]:
        """Open the tunnel of `ray dashboard` to a port of the head node; yield its local address."""
        port = free_port()
        log = self.home / "dashboard.log"
        ports = ("--port", port, "--remote-port", remote_port)
        process = self.start(RAY, "dashboard", "--no-config-cache", self.cluster_file, *ports, log=log)
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until(lambda: status(f"{url}/api/version") != 0)
            yield url
        finally:
            os.killpg(process.pid, 9)
            process.wait()


def request(url: str, token: str | None = None) -> http.client.HTTPResponse:
    """The response to a GET request."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    answer: http.client.HTTPResponse = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60)
    return answer


def status(url: str, token: str | None = None) -> int:
    """The HTTP status of a GET request; 0 if nothing answers."""
    try:
        with request(url, token) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def training_hosts(hosts: list[Host]) -> set[str]:
    """Names of the hosts on which a worker of Ray Train runs."""
    return {host.name for host in hosts if any("RayTrainWorker" in command for command in host.processes().values())}


def watch_until_exit(process: subprocess.Popen[bytes], hosts: list[Host], seconds: float) -> tuple[int, set[str]]:
    """Wait for a run; return its exit code and the largest set of hosts that trained at the same time."""
    deadline = time.monotonic() + seconds
    together: set[str] = set()
    while process.poll() is None:
        assert time.monotonic() < deadline, f"still running after {seconds} s"
        now = training_hosts(hosts)
        together = now if len(now) > len(together) else together
        time.sleep(0.5)
    return process.returncode, together
