"""Submit a job to a cluster, follow it, or stop it, through a tunnel that may break."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import TypeVar

import aiohttp
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from tunnel import Tunnel, TunnelError

# What requests, aiohttp, and Ray's client raise if the connection breaks or if Ray's dashboard does not answer.
BROKEN = (OSError, RuntimeError, aiohttp.ClientError)
SECONDS_BETWEEN_ATTEMPTS = 5.0
SECONDS_UNTIL_GIVING_UP = 1800.0
# A connection that lasted as long as this was not part of the same failure.
SECONDS_OF_A_CONNECTION = 60.0
ENDED_CODES = {JobStatus.SUCCEEDED: 0, JobStatus.STOPPED: 128 + signal.SIGTERM}

T = TypeVar("T")


class EndError(Exception):
    """The command ends with this message and exit code."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


class Connection:
    """Ray's job server behind a tunnel, which is opened again when it breaks.

    Raises:
        EndError: if there is no way to the server in the first place.
    """

    def __init__(self, tunnel: Tunnel) -> None:
        self._tunnel = tunnel
        self._lost_at: float | None = None
        try:
            tunnel.open()
            JobSubmissionClient(tunnel.url)
        except (TunnelError, *BROKEN) as error:
            print(error, file=sys.stderr)
            raise EndError("no connection to Ray on the head node: is the cluster up?") from error

    def call(self, action: Callable[[JobSubmissionClient], T]) -> T:
        """Run an action on the server, again from its start whenever the connection breaks.

        Raises:
            EndError: if there has been no connection for `SECONDS_UNTIL_GIVING_UP`.
        """
        while True:
            connected_at = time.monotonic()
            try:
                result = action(JobSubmissionClient(self._tunnel.url))
            except BROKEN as error:
                if time.monotonic() - connected_at > SECONDS_OF_A_CONNECTION:
                    self._lost_at = None
                self._reconnect(error)
            else:
                self._lost_at = None
                return result

    def _reconnect(self, error: Exception) -> None:
        if self._lost_at is None:
            self._lost_at = time.monotonic()
            note(f"lost the connection ({one_line(error)}); reconnecting; the job continues")
        while time.monotonic() - self._lost_at < SECONDS_UNTIL_GIVING_UP:
            time.sleep(SECONDS_BETWEEN_ATTEMPTS)
            try:
                self._tunnel.open()
            except TunnelError:
                continue
            return
        raise EndError(f"no connection for {SECONDS_UNTIL_GIVING_UP / 60:.0f} minutes; the job may still be running")


class Log:
    """Shows the output of a job once, however often it is read from its start."""

    def __init__(self) -> None:
        self._shown = self._read = 0

    def restart(self) -> None:
        """The next text is the start of the output."""
        self._read = 0

    def show(self, text: str) -> None:
        """Show the part of the text that has not been shown; the text follows that of the last call."""
        new = text[max(0, self._shown - self._read) :]
        self._read += len(text)
        self._shown = max(self._shown, self._read)
        try:
            sys.stdout.write(new)
            sys.stdout.flush()
        except OSError as error:
            # The interpreter would try to write the rest once more.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise EndError(f"the output cannot be written: {error}; the job continues") from error

    def skip(self, text: str) -> None:
        """Count the text, which is the output so far, as shown."""
        self._shown = len(text)


class Job:
    """One job of a cluster, and what the user typed to reach it."""

    def __init__(self, connection: Connection, job_id: str, command: str) -> None:
        self._connection, self._id, self._command = connection, job_id, command
        self._log = Log()
        self.may_run = False

    def submit(self, entrypoint: str, folder: str) -> None:
        """Start the job. Repeating this after a lost connection does not start it twice."""

        def start(client: JobSubmissionClient) -> None:
            if find(client, self._id):
                return
            try:
                client.submit_job(entrypoint=entrypoint, submission_id=self._id, runtime_env={"working_dir": folder})
            except RuntimeError as error:
                self.may_run = False
                raise EndError(f"Ray did not accept the job: {one_line(error)}") from error

        print(f"Job:       {self._id}", flush=True)
        self.may_run = True
        self._connection.call(start)

    def require(self, flag: str) -> JobDetails:
        """The state of the job, which must exist."""
        jobs = self._connection.call(lambda client: client.list_jobs())
        found = {job.submission_id: job for job in jobs if job.submission_id}
        if self._id not in found:
            newest = sorted(found.values(), key=lambda job: job.start_time or 0)[-5:]
            known = ", ".join(job.submission_id for job in newest) or "none"
            raise EndError(f"{flag} {self._id}: the cluster has no such job; its newest jobs: {known}", 2)
        self.may_run = not found[self._id].status.is_terminal()
        return found[self._id]

    def follow(self) -> int:
        """Show the output until the job ends; return its exit code."""
        job = self._connection.call(self._follow)
        self.may_run = False
        if job.status == JobStatus.FAILED and job.driver_exit_code is None:
            note(job.message or "the job failed")
        code: int = ENDED_CODES.get(job.status, job.driver_exit_code or 1)
        # A negative code is the signal that killed the driver; shells report 128 + signal.
        return code if code >= 0 else 128 - code

    def _follow(self, client: JobSubmissionClient) -> JobDetails:
        self._log.restart()
        asyncio.run(self._show_until_the_end(client))
        job = find(client, self._id)
        if not job:
            self.may_run = False
            raise EndError(f"the cluster no longer knows job {self._id}: it was restarted, and the job has ended")
        if not job.status.is_terminal():
            raise ConnectionError("the output ended before the job")
        # In case the last lines came after the server had closed the connection.
        self._log.restart()
        self._log.show(client.get_job_logs(self._id))
        return job

    async def _show_until_the_end(self, client: JobSubmissionClient) -> None:
        async for text in client.tail_job_logs(self._id):
            self._log.show(text)

    def stop(self) -> int:
        """Stop the job, which then saves a checkpoint, and show what it still prints."""

        def request(client: JobSubmissionClient) -> None:
            self._log.skip(client.get_job_logs(self._id))
            client.stop_job(self._id)

        self._connection.call(request)
        code = self.follow()
        return 0 if code == ENDED_CODES[JobStatus.STOPPED] else code

    def next_steps(self) -> str:
        return f"To see its output: {self._command} --attach {self._id}\nTo stop it: {self._command} --stop {self._id}"


def find(client: JobSubmissionClient, job_id: str) -> JobDetails | None:
    return next((job for job in client.list_jobs() if job.submission_id == job_id), None)


def note(message: str) -> None:
    print(f"submit.sh: {message}", file=sys.stderr, flush=True)


def one_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[-1].rstrip(".")[:200]
