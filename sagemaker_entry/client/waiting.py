"""Wait for a submitted job or search to end, and show its log.

Uses boto3 rather than the SDK's resources, so that a job can be followed even if the SDK failed after submitting it.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from botocore.exceptions import ClientError

from sagemaker_entry.client import sdk
from sagemaker_entry.client.errors import AWS_ERRORS, NotCompletedError, WaitError

LOG_GROUP = "/aws/sagemaker/TrainingJobs"
POLL_SECONDS = 5.0
ENDED = ("Completed", "Failed", "Stopped")


class JobLog:
    """The output of a job's hosts in CloudWatch."""

    def __init__(self, logs: Any, job_name: str) -> None:
        self._logs = logs
        self._job_name = job_name
        # How far each stream has been read.
        self._tokens: dict[str, str] = {}

    def print_new(self) -> None:
        """Print the lines since the last call, host by host."""
        for stream in self._streams():
            for line in self._new_lines(stream):
                print(line, flush=True)

    def _streams(self) -> list[str]:
        """One stream per host. A restarted job gets new streams, so the list is never final."""
        pages = self._logs.get_paginator("describe_log_streams").paginate(
            logGroupName=LOG_GROUP, logStreamNamePrefix=f"{self._job_name}/"
        )
        try:
            return [stream["logStreamName"] for page in pages for stream in page["logStreams"]]
        except self._logs.exceptions.ResourceNotFoundException:
            # The group does not exist until the account's first job has printed a line.
            return []

    def _new_lines(self, stream: str) -> Iterator[str]:
        while True:
            token = self._tokens.get(stream)
            position = {"nextToken": token} if token else {}
            page = self._logs.get_log_events(
                logGroupName=LOG_GROUP, logStreamName=stream, startFromHead=True, **position
            )
            yield from (event["message"] for event in page["events"])
            self._tokens[stream] = page["nextForwardToken"]
            # Only a repeated token marks the end of a stream; a page may be empty before it.
            if page["nextForwardToken"] == token:
                return


def wait_for_job(boto_session: Any, name: str) -> None:
    """Show the status and the log of a job until it ends.

    Raises:
        NotCompletedError: if it failed or was stopped.
        WaitError: if calls to AWS fail.
    """
    with watching(name):
        job = follow_job(boto_session.client("sagemaker"), name, JobLog(boto_session.client("logs"), name))
    print(f"Status:    {job['TrainingJobStatus']}", flush=True)
    if job["TrainingJobStatus"] != "Completed":
        reason = job.get("FailureReason") or job["SecondaryStatus"]
        raise NotCompletedError(f"the job did not complete: {reason}")
    print(f"Model:     {job['ModelArtifacts']['S3ModelArtifacts']}")


def wait_for_search(boto_session: Any, name: str) -> None:
    """Show the progress of a search until it ends, then its best job.

    Raises:
        NotCompletedError: if it failed, was stopped, or has no job with a validation accuracy.
        WaitError: if calls to AWS fail.
    """
    with watching(name):
        search = follow_search(boto_session.client("sagemaker"), name)
    status, best = search["HyperParameterTuningJobStatus"], search.get("BestTrainingJob")
    print(f"Status:    {status}", flush=True)
    if best:
        print(f"Best job:  {best['TrainingJobName']}", flush=True)
    if status != "Completed":
        raise NotCompletedError(f"the search did not complete: {search.get('FailureReason') or status}")
    if not best:
        raise NotCompletedError("none of the search's jobs reported a validation accuracy.")


def follow_job(sagemaker: Any, name: str, log: JobLog) -> dict[str, Any]:
    """Print the status and the log of a job until it ends; return its final description."""
    shown = None
    while True:
        job: dict[str, Any] = sagemaker.describe_training_job(TrainingJobName=name)
        has_ended = job["TrainingJobStatus"] in ENDED
        if job["SecondaryStatus"] != shown and not has_ended:
            shown = job["SecondaryStatus"]
            print(f"Status:    {shown}", flush=True)
        # Read the log after the status, so that the log of a job that has ended is complete.
        log.print_new()
        if has_ended:
            return job
        time.sleep(POLL_SECONDS)


def follow_search(sagemaker: Any, name: str) -> dict[str, Any]:
    """Print the progress of a hyperparameter search until it ends; return its final description."""
    shown = None
    while True:
        search: dict[str, Any] = sagemaker.describe_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)
        counts = search.get("TrainingJobStatusCounters", {})
        failed = counts.get("NonRetryableError", 0) + counts.get("RetryableError", 0)
        progress = (counts.get("Completed", 0), counts.get("InProgress", 0), failed)
        if search["HyperParameterTuningJobStatus"] in ENDED:
            return search
        if progress != shown:
            shown = progress
            print("Jobs:      {} completed, {} running, {} failed".format(*progress), flush=True)
        time.sleep(POLL_SECONDS)


@contextmanager
def submitting(submission: sdk.Submission) -> Iterator[None]:
    """Name the job in any error raised after its request was sent, unless AWS rejected the request.

    Raises:
        WaitError: if the job may be running.
    """
    try:
        yield
    except Exception as error:
        is_rejected = isinstance(error, ClientError) and error.operation_name in sdk.SUBMISSIONS
        if submission.name is None or is_rejected or isinstance(error, sdk.DryRunError):
            raise
        raise _wait_error(submission.name, error) from error


def submitted_name(submission: sdk.Submission) -> str:
    """The name of the job that was submitted.

    Raises:
        WaitError: if the SDK did not send the request through the session it was given.
    """
    if submission.name is None:
        raise WaitError(
            "SageMaker's SDK did not return a job. If it submitted one, this command shows its name: aws sagemaker "
            "list-training-jobs --sort-by CreationTime --sort-order Descending --max-results 1"
        )
    return submission.name


@contextmanager
def watching(name: str) -> Iterator[None]:
    """Turn a failed call to AWS into an error that says that the job may still be running.

    Raises:
        WaitError: if the job may be running.
    """
    try:
        yield
    except AWS_ERRORS as error:
        raise _wait_error(name, error) from error


def _wait_error(name: str, error: Exception) -> WaitError:
    return WaitError(f"cannot wait for {name}, which may still be running: {error}")
