"""Follow a job or search until it ends.

Uses boto3 rather than the SDK's resources, so that a job can be followed even if the SDK failed after submitting it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from botocore.parsers import ResponseParserError

from sagemaker_entry.client.errors import AWS_ERRORS, NotCompletedError, WaitError
from sagemaker_entry.client.settings import PROGRAM
from sagemaker_entry.jobs.connection import Connection
from sagemaker_entry.jobs.job_log import JobLog

POLL_SECONDS = 5.0
# How long the last lines may take to CloudWatch.
LATE_LINES_SECONDS = 5.0
ENDED = ("Completed", "Failed", "Stopped")


def attach_command(name: str, region: str) -> str:
    """The command that follows a job or search."""
    return f"{PROGRAM} --attach {name} --region {region}"


def stop_command(name: str, region: str) -> str:
    """The command that stops a job or search."""
    return f"{PROGRAM} --stop {name} --region {region}"


def wait_for_job(connection: Connection, name: str) -> None:
    """Show the status and the log of a job until it ends.

    Raises:
        NotCompletedError: if it failed or was stopped.
        WaitError: if AWS rejected a call, or did not answer for half an hour.
    """
    with watching(name, connection.region):
        job = follow_job(connection, name, JobLog(connection, name))
    print(f"Status:    {job['TrainingJobStatus']}", flush=True)
    if job["TrainingJobStatus"] != "Completed":
        reason = job.get("FailureReason") or job["SecondaryStatus"]
        raise NotCompletedError(f"the job did not complete: {reason}")
    print(f"Model:     {job['ModelArtifacts']['S3ModelArtifacts']}")


def wait_for_search(connection: Connection, name: str) -> None:
    """Show the progress of a search until it ends, then its best job.

    Raises:
        NotCompletedError: if it failed, was stopped, or has no job with a validation accuracy.
        WaitError: if AWS rejected a call, or did not answer for half an hour.
    """
    with watching(name, connection.region):
        search = follow_search(connection, name)
    status, best = search["HyperParameterTuningJobStatus"], search.get("BestTrainingJob")
    print(f"Status:    {status}", flush=True)
    if best:
        print(f"Best job:  {best['TrainingJobName']}", flush=True)
    if status != "Completed":
        raise NotCompletedError(f"the search did not complete: {search.get('FailureReason') or status}")
    if not best:
        raise NotCompletedError("none of the search's jobs reported a validation accuracy.")


def follow_job(connection: Connection, name: str, log: JobLog) -> dict[str, Any]:
    """Print the status and the log of a job until it ends; return its final description."""
    shown = None
    while True:
        job = connection.call("sagemaker", "describe_training_job", TrainingJobName=name)
        has_ended = job["TrainingJobStatus"] in ENDED
        if job["SecondaryStatus"] != shown and not has_ended:
            shown = job["SecondaryStatus"]
            print(f"Status:    {shown}", flush=True)
        log.print_new()
        connection.sleep(LATE_LINES_SECONDS if has_ended else POLL_SECONDS)
        if has_ended:
            log.print_new()
            return job


def follow_search(connection: Connection, name: str) -> dict[str, Any]:
    """Print the progress of a hyperparameter search until it ends; return its final description."""
    shown = None
    while True:
        search = connection.call("sagemaker", "describe_hyper_parameter_tuning_job", HyperParameterTuningJobName=name)
        counts = search.get("TrainingJobStatusCounters", {})
        failed = counts.get("NonRetryableError", 0) + counts.get("RetryableError", 0)
        progress = (counts.get("Completed", 0), counts.get("InProgress", 0), failed)
        if search["HyperParameterTuningJobStatus"] in ENDED:
            return search
        if progress != shown:
            shown = progress
            print("Jobs:      {} completed, {} running, {} failed".format(*progress), flush=True)
        connection.sleep(POLL_SECONDS)


@contextmanager
def watching(name: str, region: str) -> Iterator[None]:
    """Turn a failed call to AWS into an error that says that the job may still be running.

    Raises:
        WaitError: if the job may be running.
    """
    try:
        yield
    except (*AWS_ERRORS, ResponseParserError) as error:
        raise may_be_running(name, region, error) from error


def may_be_running(name: str, region: str, error: Exception) -> WaitError:
    """The error that says that a job may still be running, and how to follow it."""
    return WaitError(
        f"cannot follow {name}, which may still be running: {str(error).rstrip('.')}. "
        f"To follow it again: {attach_command(name, region)}"
    )
