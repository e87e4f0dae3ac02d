"""Hosts on one Linux machine: namespaces, each with its own network, processes, shared memory, and folder for Ray.

They share the file system, and a bridge connects them with this machine. Needs root, iproute2, nftables, and
util-linux.
"""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

COMMANDS = {
    "ip": "iproute2",
    "tc": "iproute2",
    "nft": "nftables",
    "nsenter": "util-linux",
    "taskset": "util-linux",
    "unshare": "util-linux",
}
SHARED_BYTES = 2**31
SECONDS_TO_BOOT = 20

# Runs as PID 1 of a host; bash reaps the orphans of Ray's daemons.
INIT = """set -eu
hostname {name}
mount --make-rprivate /
ip link set lo up
mount --bind {base}/hosts /etc/hosts
mount --bind {folder} {base}/ray
mount -t tmpfs -o size=2g,mode=1777 tmpfs /dev/shm
touch {folder}/booted
while :; do wait || true; sleep 1; done
"""


def missing_requirement() -> str:
    """What this machine lacks to run hosts; empty if nothing."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "needs Linux and root for network namespaces"
    if missing := sorted({package for command, package in COMMANDS.items() if not shutil.which(command)}):
        return f"needs {', '.join(missing)}"
    probe = subprocess.run(["unshare", "--net", "--mount", "--pid", "--fork", "true"], capture_output=True)
    return "" if probe.returncode == 0 else "needs permission to create namespaces"


def run(*command: object) -> str:
    """Run a command and return its output.

    Raises:
        RuntimeError: if it fails, with what it printed.
    """
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.stderr.strip()}")
    return done.stdout


def wait_until(is_true: Callable[[], object], limit_seconds: float, interval_seconds: float = 0.1) -> bool:
    """Whether something becomes true within the time limit."""
    deadline = time.monotonic() + limit_seconds
    while not is_true():
        if time.monotonic() > deadline:
            return False
        time.sleep(interval_seconds)
    return True


def command_lines(pids: Iterable[int]) -> dict[int, str]:
    """The command line of each of these processes that still exists; empty for one that is ending."""
    found = {}
    for pid in pids:
        # It may have exited.
        with suppress(OSError):
            found[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return found


def connect(namespace: str, link: str, bridge: str, ip: str) -> None:
    """Connect a namespace to a bridge by a new cable: `link` is its end on the bridge, eth0 the other one."""
    run("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", namespace)
    run("ip", "link", "set", link, "master", bridge, "up")
    run("ip", "-n", namespace, "address", "add", f"{ip}/24", "dev", "eth0")
    run("ip", "-n", namespace, "link", "set", "eth0", "up")


def send_signal(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process that may have ended in the meantime."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)


@dataclass
class Host:
    """A running host.

    Attributes:
        link: the end of its cable on the bridge; the other end is eth0.
        folder: Ray's sockets and logs.
        process: the parent of its process 1.
    """

    name: str
    ip: str
    link: str
    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def namespace(self) -> str:
        return self.link

    def enter(self, *command: object, environment: dict[str, str] | None = None) -> list[str]:
        """The command line that runs a command on this host; its working directory is that of this process."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        namespaces = ["nsenter", "--target", children.split()[0], "--net", "--pid", "--mount", "--uts", "--ipc"]
        settings = [f"{name}={value}" for name, value in (environment or {}).items()]
        # A worker has a thread per core of its host, so the weights would depend on how many workers share a host.
        one_core = ["taskset", "--cpu-list", str(self.core)]
        return [*namespaces, *one_core, "env", "-C", os.getcwd(), *settings, *map(str, command)]

    @property
    def core(self) -> int:
        """The core on which everything of this host runs; hosts take turns."""
        cores = sorted(os.sched_getaffinity(0))
        return cores[int(self.ip.rpartition(".")[2]) % len(cores)]

    def processes(self) -> dict[int, str]:
        """Command lines of its processes, by process ID as seen from this machine, without those that keep it up."""
        own = ("unshare ", "bash ", "sleep ", "nsenter ")
        found = command_lines(map(int, run("ip", "netns", "pids", self.namespace).split()))
        return {pid: command for pid, command in found.items() if command and not command.startswith(own)}

    def kill_everything(self) -> None:
        """Kill all processes of this host except those that keep it up."""

        def killed() -> bool:
            pids = list(self.processes())
            for pid in pids:
                send_signal(pid, signal.SIGKILL)
            return not pids

        if not wait_until(killed, 20):
            raise RuntimeError(f"processes of {self.name} cannot be killed: {self.processes()}")


@dataclass
class Network:
    """Hosts, and the folder `shared` that all of them can write, a file system of its own in memory."""

    base: Path
    prefix: str
    hosts: list[Host] = field(default_factory=list)

    @property
    def gateway(self) -> str:
        """The address of this machine."""
        return f"{self.prefix}.1"

    @property
    def bridge(self) -> str:
        return f"br{self.base.name[-8:]}"

    @property
    def shared(self) -> Path:
        return self.base / "shared"


@contextmanager
def network(count: int) -> Iterator[Network]:
    """Boot this number of hosts; power them off at the end."""
    # Ray limits the length of the paths of its sockets.
    base = Path(tempfile.mkdtemp(prefix="chaos-", dir="/tmp"))
    made = Network(base, f"10.{secrets.randbelow(100) + 100}.{secrets.randbelow(250)}")
    # torch looks up the names of its peers, in both notations, and there is no name server here.
    names = {f"{made.prefix}.{number + 11}": f"host{number}" for number in range(count)}
    lines = [f"{form}{ip} {name}\n" for ip, name in names.items() for form in ("", "::ffff:")]
    with ExitStack() as afterwards:
        afterwards.callback(shutil.rmtree, base)
        (base / "ray").mkdir()
        made.shared.mkdir()
        (base / "hosts").write_text("127.0.0.1 localhost\n" + "".join(lines))
        run("mount", "-t", "tmpfs", "-o", f"size={SHARED_BYTES}", "tmpfs", made.shared)
        afterwards.callback(run, "umount", "--lazy", made.shared)
        run("ip", "link", "add", made.bridge, "type", "bridge")
        afterwards.callback(run, "ip", "link", "delete", made.bridge)
        run("ip", "address", "add", f"{made.gateway}/24", "dev", made.bridge)
        run("ip", "link", "set", made.bridge, "up")
        for ip, name in names.items():
            made.hosts.append(_boot(made, name, ip, afterwards))
        yield made


def _boot(made: Network, name: str, ip: str, afterwards: ExitStack) -> Host:
    """Boot a host; `afterwards` powers it off, also if it does not boot."""
    folder = made.base / name
    folder.mkdir()
    (folder / "init.sh").write_text(INIT.format(name=name, base=made.base, folder=folder))
    link = f"ch{secrets.token_hex(5)}"
    run("ip", "netns", "add", link)
    afterwards.callback(run, "ip", "netns", "delete", link)
    connect(link, link, made.bridge, ip)
    command = ["ip", "netns", "exec", link, "unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc"]
    with (folder / "init.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--uts", "--ipc", "bash", str(folder / "init.sh")],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    afterwards.callback(_power_off, process, link)
    if not wait_until((folder / "booted").exists, SECONDS_TO_BOOT):
        raise RuntimeError(f"{name} does not boot: {(folder / 'init.log').read_text()}")
    return Host(name, ip, link, folder, process)


def _power_off(process: subprocess.Popen[bytes], namespace: str) -> None:
    # PID 1 is killed together with its parent, and the kernel then kills all processes of the namespace.
    process.kill()
    process.wait()
    wait_until(lambda: not run("ip", "netns", "pids", namespace).split(), 20)
