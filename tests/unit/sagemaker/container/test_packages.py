import os
import subprocess
import sys
from pathlib import Path

import pytest

from sagemaker_entry.container.packages import PIP, find_cause
from support.command import free_port

# Of newer versions of pip, and of failures that cannot be caused here.
RETRYING = "WARNING: Retrying (Retry(total=4)) after connection broken by '{}': /simple/ray/"
TIMEOUT = RETRYING.format(
    "ConnectTimeoutError(<pip._vendor.urllib3.connection.HTTPSConnection object at 0x7f>, "
    "'Connection to index.example timed out. (connect timeout=15)')"
)
UNRESOLVED = RETRYING.format(
    "NewConnectionError(\"HTTPSConnection(host='index.example', port=443): Failed to establish a new connection: "
    '[Errno -3] Temporary failure in name resolution")'
)
NOTHING_FOUND = "ERROR: Could not find a version that satisfies the requirement ray==2.60.* (from versions: none)"
OLD_PYTHON = "ERROR: Could not find a version that satisfies the requirement ray==2.60.* (from versions: 2.9.0, 2.10.0)"
FULL_DISK = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device"
CRASH = ["ERROR: Exception:", "Traceback (most recent call last):", '  File "x.py", line 1, in y', "MemoryError: 8 MB"]
DENIED = "botocore.exceptions.ClientError: An error occurred (AccessDeniedException) when calling GetAuthorizationToken"
CAUSES = {
    "timeout": (
        [TIMEOUT, NOTHING_FOUND],
        "reach its package index (Connection to index.example timed out. (connect timeout=15",
    ),
    "name": (
        [UNRESOLVED, NOTHING_FOUND],
        "index (Failed to establish a new connection: [Errno -3] Temporary failure in",
    ),
    "empty index": (
        [NOTHING_FOUND],
        "satisfies the requirement ray==2.60.* (from versions: none): the job needs internet",
    ),
    "old Python": ([TIMEOUT, OLD_PYTHON], OLD_PYTHON.removeprefix("ERROR: ")),
    "full disk": (["WARNING: x", FULL_DISK, "ERROR: y"], FULL_DISK.removeprefix("ERROR: ")),
    "crash": (CRASH, "MemoryError: 8 MB"),
    "login": (["Traceback ...", DENIED], DENIED),
    "no pip": (["/usr/bin/python: No module named pip"], "No module named pip"),
}


@pytest.mark.parametrize("case", CAUSES)
def test_cause_is_in_the_reason(case: str) -> None:
    lines, text = CAUSES[case]
    assert text in find_cause(1, lines)


def test_killed_pip_is_named() -> None:
    assert find_cause(-9, []) == "pip was killed by SIGKILL (SIGKILL often means that memory ran out)"


def test_index_that_refuses_connections_is_the_cause(tmp_path: Path) -> None:
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("surely-not-installed==1.0\n")
    settings = {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": f"http://127.0.0.1:{free_port()}", "PIP_RETRIES": "1"}
    result = subprocess.run([*PIP, str(requirements)], env=os.environ | settings, capture_output=True, text=True)
    assert result.returncode == 1, result.stdout
    cause = find_cause(result.returncode, result.stderr.splitlines())
    assert cause.startswith("pip cannot reach its package index (Failed to establish a new connection: [Errno 111]"), (
        cause
    )
    assert "$PIP_INDEX_URL" in cause


def test_python_of_the_job_is_that_of_its_pip() -> None:
    assert PIP[:3] == (sys.executable, "-m", "pip")
