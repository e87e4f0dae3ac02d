"""A process that holds a run, and writes to it until it may not anymore."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from support.command import ROOT

# A lease that is short, so that the tests are.
SECONDS = {"LEASE_SECONDS": 2.0, "SECONDS_BETWEEN_RENEWALS": 0.4, "SECONDS_TO_WRITE": 1.0, "SECONDS_BETWEEN_LOOKS": 0.1}
WRITE = """
import sys, time
from vgg_ddp.config import TrainConfig
from vgg_ddp.flags import UsageError
from vgg_ddp.run import lease
from vgg_ddp.run.lock import locked
from vgg_ddp.run.runs import open_run
name, storage, seconds = sys.argv[1:]
vars(lease).update(eval(seconds))
try:
    with locked(open_run(TrainConfig(run_name="run", storage_path=storage), [])) as run:
        for number in range(1000):
            run.folder.write(name, f"{number}".encode())
            print("written", flush=True)
            time.sleep(0.1)
except UsageError as error:
    print(error, flush=True)
    sys.exit(2)
except lease.LeaseLostError as error:
    print(error, flush=True)
    sys.exit(3)
"""


@contextmanager
def writer(name: str, storage: str) -> Iterator[subprocess.Popen[str]]:
    """Start a process that writes to a file of this name in run `run`."""
    command = [sys.executable, "-c", WRITE, name, storage, repr(SECONDS)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT / "ray_app")
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def printed(process: subprocess.Popen[str]) -> str:
    """The next line that a process prints."""
    assert process.stdout
    return process.stdout.readline().strip()


def freeze(process: subprocess.Popen[str]) -> None:
    """Stop the process between two writes: a request that is under way may still arrive when it wakes."""
    asked = time.monotonic()
    # A line that had to be waited for is new.
    while (line := printed(process)) != "written" or time.monotonic() - asked < 0.02:
        assert line, "the process has ended"
        asked = time.monotonic()
    process.send_signal(signal.SIGSTOP)
