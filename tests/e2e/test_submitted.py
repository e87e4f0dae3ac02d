"""What submit.py prints about jobs that SageMaker rejects or runs."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.fake_sagemaker import ROLE, JobState, Service, service
from support.s3_server import BUCKET, client

pytestmark = pytest.mark.e2e
# The SDK describes a job right after creating it.
CREATED = JobState("InProgress", "Starting")
DENIED = ("AccessDeniedException", "User: me is not authorized")


@pytest.fixture
def sagemaker(sdk_environment: dict[str, str]) -> Iterator[Service]:
    # The region must come from the flags.
    environment = {name: value for name, value in sdk_environment.items() if name != "AWS_DEFAULT_REGION"}
    with service(environment) as running:
        yield running


def test_rejected_role_is_a_one_line_error(sagemaker: Service, tmp_path: Path) -> None:
    reason = f"Could not assume role {ROLE}. Please ensure that the role exists."
    sagemaker.rejections["CreateTrainingJob"] = ("ValidationException", reason)
    result = sagemaker.submit(tmp_path)
    assert result.returncode == 1, result.stdout + result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and line.endswith(reason)
    assert "Job:" not in result.stdout


def test_log_of_every_host_and_every_restart_is_shown(sagemaker: Service, tmp_path: Path) -> None:
    sagemaker.states = [
        CREATED,
        JobState("InProgress", "Training", {"algo-1-100": ["first", "[a/b] 50%"], "algo-2-100": ["second host"]}),
        # After an interruption, the job runs on another machine with a new log stream.
        JobState("Completed", "Completed", {"algo-1-100": ["interrupted"], "algo-1-200": ["resumed", "last"]}),
    ]
    result = sagemaker.submit(tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    log = "Status:    Training\nfirst\n[a/b] 50%\nsecond host\ninterrupted\nresumed\nlast\nStatus:    Completed\n"
    assert log in result.stdout
    assert not result.stderr


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (
            JobState("Failed", "Failed", {"algo-1-100": ["Traceback"]}, "AlgorithmError: the images differ"),
            "AlgorithmError: the images differ",
        ),
        (JobState("Stopped", "MaxRuntimeExceeded", {"algo-1-100": ["Traceback"]}), "MaxRuntimeExceeded"),
    ],
)
def test_failed_or_stopped_job_is_an_error(end: JobState, reason: str, sagemaker: Service, tmp_path: Path) -> None:
    sagemaker.states = [CREATED, end]
    result = sagemaker.submit(tmp_path)
    assert result.returncode == 1
    assert f"Traceback\nStatus:    {end.status}\n" in result.stdout
    assert result.stderr == f"error: the job did not complete: {reason}\n"


@pytest.mark.parametrize(
    ("call", "answer", "error"),
    [
        ("DescribeTrainingJob", DENIED, "(AccessDeniedException) when calling the DescribeTrainingJob"),
        ("GetLogEvents", None, "Connection was closed before we received a valid response"),
    ],
    ids=["job", "log"],
)
def test_failed_wait_says_that_the_job_may_still_be_running(
    call: str, answer: tuple[str, str] | None, error: str, sagemaker: Service, tmp_path: Path
) -> None:
    sagemaker.states = [CREATED, JobState("InProgress", "Training", {"algo-1-100": ["first"]})]
    sagemaker.rejections[call] = answer
    result = sagemaker.submit(tmp_path)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert re.match(r"error: cannot wait for vgg11-ddp-\S+, which may still be running: ", line)
    assert error in line


def test_failed_wait_says_that_the_search_may_still_be_running(sagemaker: Service, tmp_path: Path) -> None:
    sagemaker.rejections["DescribeHyperParameterTuningJob"] = DENIED
    result = sagemaker.submit(tmp_path, "--tune", "lr=0.1:0.2", "--image", "mine")
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert re.match(r"error: cannot wait for vgg11-ddp-\S+, which may still be running: ", line)


@pytest.mark.parametrize("search", [(), ("--tune", "lr=0.1:0.2", "--image", "mine")], ids=["job", "search"])
def test_every_stored_object_is_encrypted_with_the_key(
    search: tuple[str, ...], sagemaker: Service, tiny_data: Path, tmp_path: Path
) -> None:
    prefix = f"keyed{len(search)}"
    result = sagemaker.submit(
        tmp_path, *search, "--job-prefix", prefix, "--kms-key", "alias/mine", "--data", tiny_data, "--no-wait"
    )
    assert result.returncode == 0, result.stdout + result.stderr
    s3 = client(sagemaker.endpoint)
    keys = [item["Key"] for item in s3.list_objects_v2(Bucket=BUCKET, Prefix=prefix)["Contents"]]
    assert any(key.endswith("train.parquet") for key in keys)
    assert any(key.endswith(("launch.py", "sourcedir.tar.gz")) for key in keys)
    found = {key: s3.head_object(Bucket=BUCKET, Key=key).get("SSEKMSKeyId") for key in keys}
    assert set(found.values()) == {"alias/mine"}, found
