"""Containers without Docker: a command runs as PID 1 in its own network, mount, PID, UTS and IPC namespaces.

A container sees this machine's files, but has its own /opt/ml, /etc, /tmp and /dev/shm. Signals go to its PID 1.
"""

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.faults.cluster.hosts import connect
from support.command import CLUSTER_SETTINGS, PATIENCE

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
TOOLS = ("ip", "unshare", "nsenter", "mount")
# PID 1 until it execs the job's entry point. /tmp is mounted last, since the sources of the other mounts are in it.
START = """set -e
mount --make-rprivate /
mount -t overlay overlay -o "lowerdir=/opt,upperdir=$ROOT/opt,workdir=$ROOT/work" /opt
mount -t overlay overlay -o "lowerdir=/etc,upperdir=$ROOT/etc,workdir=$ROOT/work-etc" /etc
mount --bind "$ROOT/hosts" /etc/hosts
mount -t tmpfs -o "size=$SHM" tmpfs /dev/shm
hostname "$NAME"
cd /
mount -t tmpfs tmpfs /tmp
mkdir /tmp/home
cd /tmp/home
unset ROOT SHM NAME
exec "$@"
"""


def missing_requirement() -> str | None:
    """What this machine lacks to simulate containers, or None."""
    if os.geteuid() != 0:
        return "needs root for network and mount namespaces"
    missing = [tool for tool in TOOLS if not shutil.which(tool)]
    if missing:
        return f"needs {', '.join(missing)} (packages iproute2 and util-linux)"
    if sys.prefix.startswith("/tmp/"):
        return "needs a virtual environment outside /tmp, which the containers do not share"
    probe = subprocess.run(["unshare", "--mount", "--pid", "--net", "--fork", "true"], capture_output=True, text=True)
    return f"needs permission to create namespaces: {probe.stderr.strip()}" if probe.returncode else None


def images_environment() -> tuple[Path, str | None]:
    """Python of the virtual environment with SageMaker's toolkits, and what is missing, or None.

    The home folder comes from the password database, since tests set $HOME to a private one.
    """
    home = pwd.getpwuid(os.getuid()).pw_dir
    cache = Path(os.environ.get("XDG_CACHE_HOME", f"{home}/.cache"))
    python = cache / "vgg-ddp-ci-images" / "bin" / "python"
    return python, None if python.exists() else f"needs {python.parent.parent}, which .ci/run creates"


def ip(*arguments: str, check: bool = True) -> None:
    subprocess.run(["ip", *arguments], check=check, capture_output=True, text=True)


@dataclass
class Network:
    """A bridge for the containers and moto's server, with names and addresses unique to this process."""

    name: str
    prefix: str
    taken: int = 1

    def next_address(self) -> int:
        """The last byte of an address that no container has used."""
        self.taken += 1
        return self.taken

    @property
    def gateway(self) -> str:
        return f"{self.prefix}.1"


@contextmanager
def network() -> Iterator[Network]:
    net = Network(f"vgg{os.getpid() % 100_000}", f"10.{64 + secrets.randbelow(186)}.{1 + secrets.randbelow(249)}")
    ip("link", "add", net.name, "type", "bridge")
    try:
        ip("addr", "add", f"{net.gateway}/24", "dev", net.name)
        ip("link", "set", net.name, "up")
        yield net
    finally:
        ip("link", "del", net.name, check=False)


@dataclass
class Container:
    """One host of a job."""

    name: str
    root: Path
    namespace: str
    address: str
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def ml(self) -> Path:
        """The folder that the container sees as /opt/ml."""
        return self.root / "opt" / "ml"

    @property
    def log(self) -> str:
        return (self.root / "log").read_text(errors="replace")

    @property
    def failure(self) -> str | None:
        file = self.ml / "output" / "failure"
        return file.read_text() if file.exists() else None

    def pid1(self) -> int:
        """ID of its PID 1 in this machine's PID namespace."""
        assert self.process
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0])

    def send_signal(self, number: int) -> None:
        os.kill(self.pid1(), number)

    def exited(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def wait(self, seconds: float) -> int:
        assert self.process
        code = self.process.wait(seconds)
        # `unshare` exits with its child's exit code or signal.
        return code if code >= 0 else 128 - code

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the container."""
        enter = ["nsenter", "--target", str(self.pid1()), "--mount", "--net", "--pid", "--uts", "--ipc"]
        return subprocess.run([*enter, *command], capture_output=True, text=True, timeout=PATIENCE)

    def start(self, command: Sequence[str], environment: Mapping[str, str], shm: str) -> None:
        """Start a command as PID 1 of the container."""
        isolate = ["--mount", "--pid", "--fork", "--mount-proc", "--uts", "--ipc", "--kill-child"]
        outer = ["ip", "netns", "exec", self.namespace, "unshare", *isolate, "bash", "-c", START, "bash"]
        given = {"HOME": "/tmp/home", "ROOT": str(self.root), "SHM": shm, "NAME": self.name, **CLUSTER_SETTINGS}
        with (self.root / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [*outer, *command],
                env=given | environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def connect(self, net: Network) -> None:
        """Create the container's network namespace, with eth0 on the bridge."""
        end = f"{self.namespace}v"
        ip("netns", "add", self.namespace)
        connect(self.namespace, end, net.name, self.address)
        ip("-n", self.namespace, "link", "set", "lo", "up")

    def remove(self) -> None:
        """Kill the container and remove its network."""
        if self.process and self.process.poll() is None:
            with suppress(ProcessLookupError, IndexError, FileNotFoundError):
                self.send_signal(signal.SIGKILL)
            self.process.kill()
            self.process.wait()
        ip("netns", "del", self.namespace, check=False)


def make_container(name: str, root: Path, net: Network) -> Container:
    """Create a container's folders, and reserve an address for it."""
    for part in ("opt/ml/model", "opt/ml/output/data", "opt/ml/checkpoints", "opt/ml/input/config"):
        (root / part).mkdir(parents=True)
    for part in ("work", "etc", "work-etc"):
        (root / part).mkdir()
    number = net.next_address()
    return Container(name, root, f"{net.name}-{number}", f"{net.prefix}.{number}")
