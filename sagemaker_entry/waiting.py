"""Wait for a job that was submitted, and show its log meanwhile."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from session import AWS_ERRORS, WaitError

if TYPE_CHECKING:
    from sagemaker.core.resources import TrainingJob

GROUP = "/aws/sagemaker/TrainingJobs"
POLL_SECONDS = 5.0
ENDED = ("Completed", "Failed", "Stopped")
# The SDK asks for a job that it has just made.
AFTER_SUBMISSION = ("DescribeTrainingJob", "DescribeHyperParameterTuningJob")


class JobLog:
    """The lines that the hosts of a job print, as CloudWatch has them."""

    def __init__(self, logs: Any, job_name: str) -> None:
        self._logs = logs
        self._job_name = job_name
        # How far each stream was read.
        self._tokens: dict[str, str] = {}

    def print_new(self) -> None:
        """Print the lines that came since the last time, host by host."""
        for stream in self._streams():
            for line in self._new_lines(stream):
                print(line, flush=True)

    def _streams(self) -> list[str]:
        """One stream for each host. A job that is started again gets new ones: the list is never final."""
        pages = self._logs.get_paginator("describe_log_streams").paginate(
            logGroupName=GROUP, logStreamNamePrefix=f"{self._job_name}/"
        )
        try:
            return [stream["logStreamName"] for page in pages for stream in page["logStreams"]]
        except self._logs.exceptions.ResourceNotFoundException:
            # The first line of the account's first job makes the group.
            return []

    def _new_lines(self, stream: str) -> Iterator[str]:
        while True:
            token = self._tokens.get(stream)
            position = {"nextToken": token} if token else {}
            page = self._logs.get_log_events(logGroupName=GROUP, logStreamName=stream, startFromHead=True, **position)
            yield from (event["message"] for event in page["events"])
            self._tokens[stream] = page["nextForwardToken"]
            # Only this says that a stream has no more, not an empty page.
            if page["nextForwardToken"] == token:
                return


def follow(job: "TrainingJob", log: JobLog) -> None:
    """Print what becomes of a job, and its log, until it ends."""
    shown = None
    while True:
        job.refresh()
        has_ended = job.training_job_status in ENDED
        if job.secondary_status != shown and not has_ended:
            shown = job.secondary_status
            print(f"Status:    {shown}", flush=True)
        # After the status: then all that an ended job printed is there.
        log.print_new()
        if has_ended:
            return
        time.sleep(POLL_SECONDS)


@contextmanager
def submitting() -> Iterator[None]:
    """Tell apart a job that AWS refused from one that it took, and then would not describe.

    Raises:
        WaitError: if the job goes on.
    """
    try:
        yield
    except ClientError as error:
        if error.operation_name in AFTER_SUBMISSION:
            raise _wait_error(error) from error
        raise


@contextmanager
def watching() -> Iterator[None]:
    """Say that a job goes on when AWS, or the way to it, ends the wait for it.

    Raises:
        WaitError: if the job goes on.
    """
    try:
        yield
    except AWS_ERRORS as error:
        raise _wait_error(error) from error


def _wait_error(error: Exception) -> WaitError:
    return WaitError(f"cannot wait any longer, but the job goes on: {error}")
