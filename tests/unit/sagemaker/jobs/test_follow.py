from collections.abc import Callable

import boto3
import pytest
from botocore.exceptions import ClientError, ReadTimeoutError
from botocore.stub import Stubber

from sagemaker_entry import submission
from sagemaker_entry.client import sdk
from sagemaker_entry.client.errors import NotCompletedError, WaitError
from sagemaker_entry.jobs import follow
from sagemaker_entry.jobs.connection import Connection

ARN = "arn:aws:sagemaker:us-east-1:123456789012"


def submission_of(name: str | None) -> sdk.Submission:
    recorded = sdk.Submission(boto3.Session(region_name="us-east-1"))
    recorded.name = name
    return recorded


def fail_while_submitting(name: str | None, error: Exception) -> None:
    with submission.submitting(submission_of(name), "us-east-1"):
        raise error


@pytest.mark.parametrize(
    "error",
    [
        ClientError({"Error": {"Code": "AccessDeniedException"}}, "DescribeTrainingJob"),
        ReadTimeoutError(endpoint_url="https://api.sagemaker"),
        AttributeError("'ModelTrainer' object has no attribute '_latest_training_job'"),
    ],
    ids=["describe", "network", "SDK"],
)
def test_error_after_submission_names_the_job(error: Exception) -> None:
    with pytest.raises(WaitError, match=r"cannot follow job-7, which may .* --attach job-7 --region us-east-1"):
        fail_while_submitting("job-7", error)


def test_rejection_and_errors_before_submission_are_raised_unchanged() -> None:
    rejection = ClientError({"Error": {"Code": "ValidationException"}}, "CreateTrainingJob")
    with pytest.raises(ClientError):
        fail_while_submitting("job-7", rejection)
    with pytest.raises(AttributeError):
        fail_while_submitting(None, AttributeError())
    with pytest.raises(sdk.DryRunError):
        fail_while_submitting("job-7", sdk.DryRunError({}))


def test_unknown_job_name_is_reported_with_the_command_that_lists_jobs() -> None:
    assert submission.submitted_name(submission_of("job-7")) == "job-7"
    with pytest.raises(WaitError, match="aws sagemaker list-training-jobs"):
        submission.submitted_name(submission_of(None))


@pytest.fixture
def wait_for_search(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Waits for a search that goes through these statuses."""
    # Stubber validates the answers with botocore's model of the service.
    client = boto3.client("sagemaker", region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x")
    monkeypatch.setattr(boto3.Session, "client", lambda *_, **__: client)
    connection = Connection("us-east-1", sleep=lambda _: None)

    def wait(*statuses: str, **last: object) -> None:
        with Stubber(client) as stubber:
            for done, status in enumerate(statuses):
                answer = {
                    "HyperParameterTuningJobName": "search-1",
                    "HyperParameterTuningJobArn": f"{ARN}:hyper-parameter-tuning-job/search-1",
                    "HyperParameterTuningJobConfig": {
                        "Strategy": "Bayesian",
                        "ResourceLimits": {"MaxParallelTrainingJobs": 2},
                    },
                    "HyperParameterTuningJobStatus": status,
                    "CreationTime": 0,
                    "TrainingJobStatusCounters": {"Completed": done, "InProgress": 2, "NonRetryableError": 0},
                    "ObjectiveStatusCounters": {},
                }
                stubber.add_response(
                    "describe_hyper_parameter_tuning_job", answer | (last if done + 1 == len(statuses) else {})
                )
            follow.wait_for_search(connection, "search-1")

    return wait


BEST = {
    "TrainingJobName": "search-1-002",
    "TrainingJobArn": f"{ARN}:training-job/search-1-002",
    "CreationTime": 0,
    "TrainingJobStatus": "Completed",
    "TunedHyperParameters": {"lr": "0.1"},
}


def test_progress_and_best_job_of_a_search_are_shown(
    wait_for_search: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    wait_for_search("InProgress", "InProgress", "Completed", BestTrainingJob=BEST)
    assert capsys.readouterr().out.splitlines() == [
        "Jobs:      0 completed, 2 running, 0 failed",
        "Jobs:      1 completed, 2 running, 0 failed",
        "Status:    Completed",
        "Best job:  search-1-002",
    ]


def test_failed_search_and_search_without_a_result_are_errors(wait_for_search: Callable[..., None]) -> None:
    with pytest.raises(NotCompletedError, match="the search did not complete: AlgorithmError"):
        wait_for_search("Failed", FailureReason="AlgorithmError")
    with pytest.raises(NotCompletedError, match="reported a validation accuracy"):
        wait_for_search("Completed")
