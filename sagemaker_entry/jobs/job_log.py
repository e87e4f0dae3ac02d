"""The output of a job's hosts in CloudWatch, each line once."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import ClientError

from sagemaker_entry.jobs.connection import Connection, error_code

LOG_GROUP = "/aws/sagemaker/TrainingJobs"


@dataclass
class Position:
    """How far a log stream has been read.

    A token leads to the next lines, but expires after 24 hours:
    https://docs.aws.amazon.com/AmazonCloudWatchLogs/latest/APIReference/API_GetLogEvents.html. Then, reading starts
    again at the time of the last line, without the lines of that millisecond that were read before.

    Attributes:
        token: where the next call continues; None for the first call.
        start: time of the first lines that are asked for, in milliseconds since 1970; None for all lines.
        skipped: how many of the lines of that millisecond are still to be skipped.
        time: time of the last line.
        count: number of lines of that millisecond.
    """

    token: str | None = None
    start: int | None = None
    skipped: int = 0
    time: int | None = None
    count: int = 0

    def is_new(self, time: int) -> bool:
        """Whether the next line that was received, of this time, is a new one; counts it if so."""
        if self.skipped and time == self.start:
            self.skipped -= 1
            return False
        self.count = self.count + 1 if time == self.time else 1
        self.time = time
        return True

    def forget_token(self) -> None:
        self.token, self.start, self.skipped = None, self.time, self.count

    def parameters(self) -> dict[str, Any]:
        """Of GetLogEvents. A token belongs to the start time of the call that returned it."""
        given = {"nextToken": self.token, "startTime": self.start}
        return {name: value for name, value in given.items() if value is not None}


class JobLog:
    """The output of a job's hosts in CloudWatch."""

    def __init__(self, connection: Connection, job_name: str) -> None:
        self._connection = connection
        self._job_name = job_name
        self._positions: dict[str, Position] = {}

    def print_new(self) -> None:
        """Print the lines since the last call, host by host."""
        for stream in self._streams():
            for line in self._new_lines(stream):
                print(line, flush=True)

    def _streams(self) -> list[str]:
        """One stream per host. A restarted job gets new streams, so the list is never final."""
        names: list[str] = []
        position: dict[str, str] = {}
        while True:
            try:
                page = self._connection.call(
                    "logs",
                    "describe_log_streams",
                    logGroupName=LOG_GROUP,
                    logStreamNamePrefix=f"{self._job_name}/",
                    **position,
                )
            except ClientError as error:
                if error_code(error) == "ResourceNotFoundException":
                    # The group does not exist until the account's first job has printed a line.
                    return []
                raise
            names += [stream["logStreamName"] for stream in page["logStreams"]]
            if "nextToken" not in page:
                return names
            position = {"nextToken": page["nextToken"]}

    def _new_lines(self, stream: str) -> Iterator[str]:
        position = self._positions.setdefault(stream, Position())
        while True:
            page = self._page(stream, position)
            for event in page["events"]:
                if position.is_new(event["timestamp"]):
                    yield event["message"]
            # Only a repeated token marks the end of a stream; a page may be empty before it.
            is_end = page["nextForwardToken"] == position.token
            position.token = page["nextForwardToken"]
            if is_end:
                return

    def _page(self, stream: str, position: Position) -> dict[str, Any]:
        request = {"logGroupName": LOG_GROUP, "logStreamName": stream, "startFromHead": True}
        try:
            return self._connection.call("logs", "get_log_events", **request, **position.parameters())
        except ClientError as error:
            if error_code(error) != "InvalidParameterException" or position.token is None:
                raise
        position.forget_token()
        return self._connection.call("logs", "get_log_events", **request, **position.parameters())
