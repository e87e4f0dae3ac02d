"""The project's commands, as tests start them."""

import os
import pty
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
MAIN = ROOT / "ray_app" / "main.py"
PREDICT = ROOT / "ray_app" / "predict.py"
PREPARE = ROOT / "ray_app" / "prepare.py"
SAMPLE = ROOT / "ray_app" / "sample"
SAGEMAKER_SUBMIT = ROOT / "sagemaker_entry" / "submit.py"
MARK = "VGG_TEST_MARK"


def main_command(*flags: object) -> list[str]:
    """The command line of a run."""
    return [str(part) for part in (sys.executable, MAIN, *flags)]


def submit_to_sagemaker(cwd: Path, *flags: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command that submits a job, with nothing of AWS but what is given."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "SAGEMAKER_"))}
    command = [sys.executable, str(SAGEMAKER_SUBMIT), *map(str, flags)]
    return subprocess.run(command, cwd=cwd, env=clean | environment, capture_output=True, text=True, timeout=120)


def torchrun_command(processes: int, *flags: object) -> list[str]:
    """The command line of a run that torchrun starts, and starts again once if a process of it fails."""
    torchrun = Path(sys.executable).with_name("torchrun")
    options = ("--standalone", f"--nproc-per-node={processes}", "--max-restarts=1")
    return [str(part) for part in (torchrun, *options, MAIN, *flags)]


def run_main(*flags: object, cwd: Path, timeout: float = 300, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a person does, and wait for it."""
    return _run(main_command(*flags), cwd, timeout, environment)


def run_torchrun(processes: int, *flags: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command in processes of torchrun's, and wait for them."""
    return _run(torchrun_command(processes, *flags), cwd, 200, environment)


def _run(
    command: list[str], cwd: Path, timeout: float, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, timeout=timeout
    )


def run_on_terminal(command: list[str], cwd: Path, **environment: str) -> tuple[int, str]:
    """Run a command as in a terminal window of 120 columns; its exit code, and all that it wrote there."""
    ours, its = pty.openpty()
    termios.tcsetwinsize(its, (40, 120))
    with subprocess.Popen(
        command, cwd=cwd, env=os.environ | {"TERM": "xterm"} | environment, stdin=its, stdout=its, stderr=its
    ) as process:
        os.close(its)
        written = read_terminal(ours)
    return process.returncode, written


def read_terminal(ours: int) -> str:
    """All that is written to a terminal until the last that writes there has closed it; then we close our end."""
    written = b""
    # Linux says so by an error.
    with suppress(OSError):
        while chunk := os.read(ours, 65536):
            written += chunk
    os.close(ours)
    return written.decode(errors="replace")


@contextmanager
def started(
    cwd: Path, command: list[str], log: Path | None = None, **environment: str
) -> Iterator[subprocess.Popen[str]]:
    """A command in the background, which prints into a pipe or a file; on leaving, all that it started is ended."""
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
        for pid in processes_marked(cwd.name):
            os.kill(pid, signal.SIGKILL)


def own_words(output: str) -> str:
    """What the command itself printed, without the lines that Ray forwards from its other processes."""
    return "\n".join(line for line in output.splitlines() if " pid=" not in line)


def whole_checkpoints(run: Path) -> int:
    """How many checkpoints of a run are complete."""
    return len(list(run.glob("checkpoint_*/manifest.json")))


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
