"""moto's SageMaker, extended with jobs that take time and print a log, and with calls that are rejected."""

import io
import json
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from moto.sagemaker.models import sagemaker_backends

from support.command import free_port, submit_to_sagemaker
from support.s3_server import BUCKET, client, serving

LOG_GROUP = "/aws/sagemaker/TrainingJobs"
ACCOUNT = "123456789012"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/training"
# Not the region of s3_server, so that a test fails if the program mixes them up.
REGION = "eu-west-1"
MACHINE = ("--role", ROLE, "--region", REGION, "--bucket", BUCKET, "--instance-type", "ml.c5.xlarge")


@dataclass(frozen=True)
class JobState:
    """The answer to one DescribeTrainingJob, and the lines that hosts printed since the previous one."""

    status: str
    secondary_status: str
    printed: dict[str, list[str]] = field(default_factory=dict)
    failure_reason: str | None = None


@dataclass
class Service:
    """A running service.

    Attributes:
        rejections: error code and message by name of the call; None closes the connection instead.
        states: successive states of the job; the last one remains. If empty, a job completes at once.
    """

    endpoint: str
    environment: dict[str, str]
    rejections: dict[str, tuple[str, str] | None] = field(default_factory=dict)
    states: list[JobState] = field(default_factory=list)

    def submit(self, cwd: Path, *flags: object) -> subprocess.CompletedProcess[str]:
        """Run submit.py with this service's credentials and no other AWS settings."""
        # moto answers unsupported calls with status 500, which boto3 would retry for seconds.
        aws = {"AWS_ENDPOINT_URL": self.endpoint, "AWS_MAX_ATTEMPTS": "1"}
        return submit_to_sagemaker(cwd, *MACHINE, *flags, **self.environment, **aws)

    def wrap(self, application: Callable[..., Any]) -> Callable[..., Any]:
        """Add this service's rejections and states to an application."""

        def answer(environ: dict[str, Any], start_response: Any) -> Any:
            call = environ.get("HTTP_X_AMZ_TARGET", "").rpartition(".")[2]
            if call in self.rejections:
                rejection = self.rejections[call]
                if rejection is None:
                    environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
                    raise ConnectionError
                code, message = rejection
                start_response("400 Bad Request", [("Content-Type", "application/x-amz-json-1.1")])
                return [json.dumps({"__type": code, "message": message}).encode()]
            if call == "DescribeTrainingJob" and self.states:
                body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
                environ["wsgi.input"] = io.BytesIO(body)
                self._advance(json.loads(body)["TrainingJobName"], self.states.pop(0))
            return application(environ, start_response)

        return answer

    def _advance(self, name: str, state: JobState) -> None:
        job = sagemaker_backends[ACCOUNT][REGION].training_jobs[name]
        job.training_job_status, job.secondary_status = state.status, state.secondary_status
        job.failure_reason = state.failure_reason
        logs = client(self.endpoint, "logs", REGION)
        for host, lines in state.printed.items():
            stream = {"logGroupName": LOG_GROUP, "logStreamName": f"{name}/{host}"}
            with suppress(logs.exceptions.ResourceAlreadyExistsException):
                logs.create_log_group(logGroupName=LOG_GROUP)
            with suppress(logs.exceptions.ResourceAlreadyExistsException):
                logs.create_log_stream(**stream)
            now = int(time.time() * 1000)
            logs.put_log_events(**stream, logEvents=[{"timestamp": now, "message": line} for line in lines])


@contextmanager
def service(environment: dict[str, str]) -> Iterator[Service]:
    """Run a service with one bucket."""
    port = free_port()
    running = Service(f"http://127.0.0.1:{port}", environment)
    application = running.wrap(DomainDispatcherApplication(create_backend_app))
    with serving(application, "127.0.0.1", port):
        client(running.endpoint).create_bucket(Bucket=BUCKET)
        yield running
