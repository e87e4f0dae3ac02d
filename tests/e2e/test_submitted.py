"""What submit.py shows of a job that SageMaker refuses, or runs for a while."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fake_sagemaker import ROLE, Look, Service, service
from s3_server import BUCKET, client

pytestmark = pytest.mark.e2e
# The SDK looks at a job that it has just made.
MADE = Look("InProgress", "Starting")
DENIED = ("AccessDeniedException", "User: me is not authorized")


@pytest.fixture
def sagemaker(sdk_environment: dict[str, str]) -> Iterator[Service]:
    # The region comes from the flags alone.
    environment = {name: value for name, value in sdk_environment.items() if name != "AWS_DEFAULT_REGION"}
    with service(environment) as made:
        yield made


def test_role_that_sagemaker_refuses_is_one_line(sagemaker: Service, tmp_path: Path) -> None:
    reason = f"Could not assume role {ROLE}. Please ensure that the role exists."
    sagemaker.refusals["CreateTrainingJob"] = ("ValidationException", reason)
    result = sagemaker.submit(tmp_path)
    assert result.returncode == 1, result.stdout + result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and line.endswith(reason)
    assert "Job:" not in result.stdout


def test_log_of_every_host_and_every_start_is_shown_as_it_is(sagemaker: Service, tmp_path: Path) -> None:
    sagemaker.looks = [
        MADE,
        Look("InProgress", "Training", {"algo-1-100": ["first", "[a/b] 50%"], "algo-2-100": ["second host"]}),
        # On another machine after an interruption: in a stream of its own.
        Look("Completed", "Completed", {"algo-1-100": ["interrupted"], "algo-1-200": ["resumed", "last"]}),
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
            Look("Failed", "Failed", {"algo-1-100": ["Traceback"]}, "AlgorithmError: the images differ"),
            "AlgorithmError: the images differ",
        ),
        (Look("Stopped", "MaxRuntimeExceeded", {"algo-1-100": ["Traceback"]}), "MaxRuntimeExceeded"),
    ],
)
def test_job_that_failed_or_was_stopped_is_no_success(
    end: Look, reason: str, sagemaker: Service, tmp_path: Path
) -> None:
    sagemaker.looks = [MADE, end]
    result = sagemaker.submit(tmp_path)
    assert result.returncode == 1
    assert f"Traceback\nStatus:    {end.status}\n" in result.stdout
    assert result.stderr == f"error: the job ended before it was completed: {reason}\n"


@pytest.mark.parametrize(
    ("call", "answer", "error"),
    [
        ("DescribeTrainingJob", DENIED, "(AccessDeniedException) when calling the DescribeTrainingJob"),
        ("DescribeLogStreams", DENIED, "(AccessDeniedException) when calling the DescribeLogStreams"),
        ("GetLogEvents", DENIED, "(AccessDeniedException) when calling the GetLogEvents"),
        ("GetLogEvents", None, "Connection was closed before we received a valid response"),
    ],
    ids=["job", "streams", "lines", "network"],
)
def test_whoever_cannot_wait_is_told_that_the_job_goes_on(
    call: str, answer: tuple[str, str] | None, error: str, sagemaker: Service, tmp_path: Path
) -> None:
    sagemaker.looks = [MADE, Look("InProgress", "Training", {"algo-1-100": ["first"]})]
    sagemaker.refusals[call] = answer
    result = sagemaker.submit(tmp_path)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: cannot wait any longer, but the job goes on: ")
    assert error in line


def test_whoever_may_not_see_a_search_is_told_that_it_goes_on(sagemaker: Service, tmp_path: Path) -> None:
    sagemaker.refusals["DescribeHyperParameterTuningJob"] = DENIED
    result = sagemaker.submit(tmp_path, "--tune", "lr=0.1:0.2", "--image", "mine")
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: cannot wait any longer, but the job goes on: ")


@pytest.mark.parametrize("search", [(), ("--tune", "lr=0.1:0.2", "--image", "mine")], ids=["job", "search"])
def test_all_that_is_stored_takes_the_key(
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
