"""Installs the packages that a job needs and its image lacks, and finds the cause if that fails."""

import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from sagemaker_entry.container.entry import POLL_SECONDS, Entry
from sagemaker_entry.container.outcome import PACKAGES_MISSING, STOPPED, JobError, describe_kill, find_exception
from sagemaker_entry.container.processes import Child

REQUIREMENTS = Path(__file__).resolve().parents[1] / "requirements.txt"
# The SDK's script (3.27), which first logs in to AWS CodeArtifact if this variable names a repository.
CODE_ARTIFACT = "CA_REPOSITORY_ARN"
SDK_INSTALLER = Path("/opt/ml/input/data/sm_drivers/scripts/install_requirements.py")
PIP = (
    sys.executable,
    "-m",
    "pip",
    "install",
    "--quiet",
    "--disable-pip-version-check",
    "--root-user-action=ignore",
    "-r",
)
ADVICE = (
    "the job needs internet access, $PIP_INDEX_URL with an index that it can reach, or an image that already contains "
    "the packages of sagemaker_entry/requirements.txt"
)


def start_pip(entry: Entry) -> Child:
    """Start to install the packages of sagemaker_entry/requirements.txt.

    Here rather than by SageMaker's SDK or the image's toolkit, whose failure reason would not contain the cause.
    """
    entry.log(f"installing {REQUIREMENTS.parent.name}/{REQUIREMENTS.name}")
    needs_login = CODE_ARTIFACT in os.environ and SDK_INSTALLER.exists()
    command = (sys.executable, str(SDK_INSTALLER)) if needs_login else PIP
    return entry.processes.start([*command, str(REQUIREMENTS)], entry.environment)


def install_packages(entry: Entry) -> None:
    """Install them on the head, before Ray starts.

    Raises:
        JobError: with the cause, if they cannot be installed, or SIGTERM arrives.
    """
    pip = start_pip(entry)
    while pip.code is None:
        if entry.stop_requested:
            raise JobError(STOPPED, "stopped by SIGTERM before the job started")
        time.sleep(POLL_SECONDS / 5)
        entry.processes.reap()
    if pip.code:
        raise JobError(PACKAGES_MISSING, describe_failure(pip))
    entry.restart_join_deadline()


def describe_failure(pip: Child) -> str:
    """Why packages could not be installed, from pip's exit code and its last lines of output."""
    return f"packages could not be installed: {find_cause(pip.code or 0, pip.last_lines())}"


def find_cause(code: int, lines: Sequence[str]) -> str:
    """The cause of a failure of pip."""
    if code < 0:
        return describe_kill("pip", code)
    error = _first_error(lines)
    if error is None:
        return find_exception(lines) or "\n".join(lines[-10:])
    if "(from versions: none)" in error:
        # pip only warns if it cannot connect, and then finds no packages.
        reason = _connection_failure(lines)
        return f"pip cannot reach its package index ({reason}): {ADVICE}" if reason else f"{error}: {ADVICE}"
    return error


def _connection_failure(lines: Sequence[str]) -> str | None:
    """Why pip could not connect to its index; None if it could."""
    broken = [found[1] for line in lines if (found := re.search(r"connection broken by '(.*)': /", line))]
    if not broken:
        return None
    # Without the objects in NewConnectionError('<...HTTPSConnection object at 0x7f>: Failed to establish ...') and in
    # ReadTimeoutError("HTTPSConnectionPool(host='index.example', port=443): Read timed out. ...").
    return re.sub(r"^\w+\([\"']?(<[^>]*>[:,] |\w+\([^)]*\): )?[\"']?|[\"']?\)$", "", broken[0])


def _first_error(lines: Sequence[str]) -> str | None:
    """The first error that pip printed; of a crash of pip itself, the exception."""
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    if errors and errors[0] == "Exception:":
        return find_exception(lines)
    return errors[0] if errors else None
