"""What submit.sh does on the cluster, which calls this program:

python cluster/submit_job.py SUBMIT_SH CLUSTER_FILE submit|attach|stop ARGUMENTS
"""

import logging
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType

from ray.exceptions import AuthenticationError

from job_client import Connection, EndError, Job
from machines import ClusterFileError, read_cluster, require_usable_key
from tunnel import HostKeyError, Tunnel

ROOT = Path(__file__).resolve().parents[1]


class Interrupted(KeyboardInterrupt):
    """A signal ends this command, but not the job."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.code = 128 + number


def interrupt(number: int, _: FrameType | None) -> None:
    raise Interrupted(number)


def submit(job: Job, program: str, *flags: str) -> int:
    """Run a program of ray_app with these flags as a job; return its exit code."""
    with tempfile.TemporaryDirectory() as shipped:
        # Only ray_app: the repository may also contain images, runs, and weights.
        shutil.copytree(ROOT / "ray_app", Path(shipped, "ray_app"), ignore=shutil.ignore_patterns("__pycache__"))
        job.submit(shlex.join(["python", f"ray_app/{program}", *flags]), shipped)
    return job.follow()


def stop(job: Job) -> int:
    """Stop a job; 0 if that worked, or if the job has ended already."""
    state = job.require("--stop")
    if state.status.is_terminal():
        print(f"The job has ended already: {state.status}.")
        return 0
    return job.stop()


def run(command: str, tunnel: Tunnel, action: str, arguments: list[str]) -> int:
    """Do what was asked; return the exit code."""
    own_id = f"vgg-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    try:
        job = Job(Connection(tunnel), own_id if action == "submit" else arguments[0], command)
        try:
            if action == "submit":
                return submit(job, *arguments)
            if action == "stop":
                return stop(job)
            job.require("--attach")
            return job.follow()
        finally:
            # After a signal or a failure of this command. The terminal may be gone.
            if job.may_run:
                with suppress(OSError):
                    print(f"The job is still running.\n{job.next_steps()}", file=sys.stderr, flush=True)
    finally:
        tunnel.close()


def main() -> int:
    command, cluster_file, action, *arguments = sys.argv[1:]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # As under nohup.
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, interrupt)
    # They would replace the address of the tunnel.
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        os.environ.pop(name, None)
    # Ray's client logs the size of each package and each closed connection; errors are exceptions.
    logging.disable(logging.WARNING)
    typed = shlex.join([command, cluster_file])
    try:
        config = read_cluster(cluster_file)
        require_usable_key(config)
        tunnel = Tunnel(os.path.abspath(cluster_file), config)
        # Cluster files name files of the repository by their relative paths.
        os.chdir(ROOT)
        return run(typed, tunnel, action, arguments)
    except Interrupted as interrupted:
        return interrupted.code
    except ClusterFileError as error:
        message, code = str(error), 2
    except AuthenticationError:
        message, code = "the cluster has another token than ~/.ray/auth_token: run ray up to give it this one", 2
    except HostKeyError as error:
        message, code = str(error), 1
    except EndError as error:
        message, code = str(error), error.code
    print(f"submit.sh: error: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
