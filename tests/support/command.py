"""Run the project's commands in tests."""

import os
import pty
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
MAIN = ROOT / "ray_app" / "main.py"
PREDICT = ROOT / "ray_app" / "predict.py"
PREPARE = ROOT / "ray_app" / "prepare.py"
TUNE = ROOT / "ray_app" / "tune.py"
COMPARE = ROOT / "ray_app" / "compare.py"
SAMPLE = ROOT / "ray_app" / "sample"
SAGEMAKER_SUBMIT = ROOT / "sagemaker_entry" / "submit.py"
MARK = "VGG_TEST_MARK"
# Default timeout in seconds, enough for a slow machine. Tests with a tighter deadline pass their own.
PATIENCE = 400
# For programs that share two cores with other tests. By default, Ray gives its workers the lowest priority, and
# OpenMP's threads spin while they wait for each other: four times slower if there are more threads than cores.
SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0", "OMP_WAIT_POLICY": "passive"}
# On a cluster, the actor that lists the runs in the dashboard takes each run 5 s of CPU time.
STATE_TRACKING = "RAY_TRAIN_ENABLE_STATE_TRACKING"
CLUSTER_SETTINGS = SETTINGS | {STATE_TRACKING: "0"}


def main_command(*flags: object) -> list[str]:
    """Command line of a run."""
    return [str(part) for part in (sys.executable, MAIN, *flags)]


def submit_to_sagemaker(cwd: Path, *flags: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command that submits a job, with no AWS variables except the given ones."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "SAGEMAKER_"))}
    command = [sys.executable, str(SAGEMAKER_SUBMIT), *map(str, flags)]
    return subprocess.run(command, cwd=cwd, env=clean | environment, capture_output=True, text=True, timeout=PATIENCE)


def torchrun_command(processes: int, *flags: object, restarts: int = 1) -> list[str]:
    """Command line of a run that torchrun starts, and restarts if one of its processes fails."""
    torchrun = Path(sys.executable).with_name("torchrun")
    options = ("--standalone", f"--nproc-per-node={processes}", f"--max-restarts={restarts}")
    return [str(part) for part in (torchrun, *options, MAIN, *flags)]


def run_main(*flags: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run main.py as a user does, and wait for it."""
    return _run(main_command(*flags), cwd, environment)


def run_torchrun(processes: int, *flags: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run main.py under torchrun, and wait for it."""
    return _run(torchrun_command(processes, *flags), cwd, environment)


def _run(command: list[str], cwd: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, timeout=PATIENCE
    )


def run_on_terminal(command: list[str], cwd: Path, **environment: str) -> tuple[int, str]:
    """Run a command in a terminal of 120 columns; return its exit code and output."""
    controller, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (40, 120))
    with subprocess.Popen(
        command,
        cwd=cwd,
        env=os.environ | {"TERM": "xterm"} | environment,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
    ) as process:
        os.close(terminal)
        written = read_terminal(controller)
    return process.returncode, written


def read_terminal(controller: int) -> str:
    """Read a pseudo-terminal from its controlling end until its last writer is gone, then close it."""
    written = b""
    # Linux reports that with an error.
    with suppress(OSError):
        while chunk := os.read(controller, 65536):
            written += chunk
    os.close(controller)
    return written.decode(errors="replace")


@contextmanager
def started(
    cwd: Path, command: list[str], log: Path | None = None, **environment: str
) -> Iterator[subprocess.Popen[str]]:
    """Run a command in the background, with output to a pipe or a file; on exit, kill it and all that it started."""
    with log.open("w") if log else nullcontext(subprocess.PIPE) as output:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=os.environ | environment | {MARK: cwd.name},
            text=True,
            start_new_session=True,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        # They may start others until the last one is killed.
        while left := marked_processes(cwd.name):
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)


def own_output(output: str) -> str:
    """Output of the command itself, without the lines that Ray forwards from other processes."""
    return "\n".join(line for line in output.splitlines() if " pid=" not in line)


def complete_checkpoints(run: Path) -> set[str]:
    """Names of the complete checkpoints of a run."""
    return {manifest.parent.name for manifest in run.glob("checkpoint_*/manifest.json")}


def count_checkpoints(run: Path) -> int:
    """Number of complete checkpoints of a run."""
    return len(complete_checkpoints(run))


def marked_processes(mark: str) -> dict[int, str]:
    """Process IDs and command lines of the live processes whose environment contains this mark."""
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


def process_tree(pid: int) -> list[int]:
    """The IDs of a process and of all that it started, directly or not."""
    return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]


def send(number: signal.Signals, processes: Iterable[int]) -> None:
    """Send a signal to those of the processes that still exist."""
    for pid in processes:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def wait_until(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    """Wait until a condition is true; fail the test after `seconds`. A slow condition is checked less often."""
    deadline = time.monotonic() + seconds
    checked = time.monotonic()
    while not condition():
        now = time.monotonic()
        assert now < deadline, f"still false after {seconds} s"
        time.sleep(min(max(0.1, 9 * (now - checked)), 1.0))
        checked = time.monotonic()


def free_port() -> int:
    """A port that is currently free on this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def where_the_name_is_public(command: list[str], folder: Path) -> list[str]:
    """The command, run where this machine's name means its address in the network, as on most machines; needs root."""
    addresses = [
        address.address
        for interface in psutil.net_if_addrs().values()
        for address in interface
        if address.family == socket.AF_INET and not address.address.startswith("127.")
    ]
    if os.geteuid() != 0 or not addresses:
        return command
    hosts = folder / "hosts"
    hosts.write_text(f"127.0.0.1 localhost\n{addresses[0]} {socket.gethostname()}\n")
    return ["unshare", "--mount", "sh", "-c", f'mount --bind {hosts} /etc/hosts && exec "$@"', "sh", *command]


def open_to_the_network(mark: str) -> list[str]:
    """Command lines of the marked processes that listen beyond loopback, one per port."""
    found = []
    for pid, command in marked_processes(mark).items():
        try:
            connections = psutil.Process(pid).net_connections(kind="inet")
        except psutil.NoSuchProcess:
            continue
        for connection in connections:
            if connection.status == psutil.CONN_LISTEN and not connection.laddr.ip.endswith(("127.0.0.1", "::1")):
                found.append(command)
    return found
