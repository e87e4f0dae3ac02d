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
Rejection = tuple[str, str]
"""Error code and message."""
DROPPED = ("", "the connection is closed without a response")
LOST = ("", "the call is carried out, but the connection is closed without a response")
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
        rejections: by name of the call.
        choose: maps the name of a call and its environment to a rejection, or to None.
        states: successive states of the job; the last one remains. If empty, a job completes at once.
        stopped: names of the jobs that were stopped, which moto cannot do.
    """

    endpoint: str
    environment: dict[str, str]
    rejections: dict[str, Rejection] = field(default_factory=dict)
    choose: Callable[[str, dict[str, Any]], Rejection | None] = lambda _call, _environment: None
    states: list[JobState] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)

    def submit(self, cwd: Path, *flags: object) -> subprocess.CompletedProcess[str]:
        """Run submit.py with this service's credentials and no other AWS settings."""
        # moto answers unsupported calls with status 500, which boto3 would retry for seconds.
        aws = {"AWS_ENDPOINT_URL": self.endpoint, "AWS_MAX_ATTEMPTS": "1"}
        return submit_to_sagemaker(cwd, *MACHINE, *flags, **self.environment, **aws)

    def create_job(self, name: str, **parameters: object) -> None:
        """Create a job with these parameters of CreateTrainingJob, without the SDK, which takes seconds."""
        machines = {"InstanceType": "ml.c5.xlarge", "InstanceCount": 2, "VolumeSizeInGB": 50}
        job: dict[str, Any] = {
            "TrainingJobName": name,
            "RoleArn": ROLE,
            "AlgorithmSpecification": {"TrainingImage": "mine", "TrainingInputMode": "File"},
            "OutputDataConfig": {"S3OutputPath": f"s3://{BUCKET}/vgg11-ddp"},
            "CheckpointConfig": {
                "S3Uri": f"s3://{BUCKET}/checkpoints/{name}/hosts",
                "LocalPath": "/opt/ml/checkpoints",
            },
            "ResourceConfig": machines,
            "StoppingCondition": {"MaxRuntimeInSeconds": 3600},
        }
        client(self.endpoint, "sagemaker", REGION).create_training_job(**job | parameters)

    def wrap(self, application: Callable[..., Any]) -> Callable[..., Any]:
        """Add this service's rejections and states to an application."""

        def answer(environ: dict[str, Any], start_response: Any) -> Any:
            call = environ.get("HTTP_X_AMZ_TARGET", "").rpartition(".")[2]
            rejection = self.rejections.get(call) or self.choose(call, environ)
            if rejection in (DROPPED, LOST):
                if rejection == LOST:
                    application(environ, lambda *_: None)
                environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
                raise ConnectionError
            if rejection:
                code, message = rejection
                return answer_json(start_response, "400 Bad Request", {"__type": code, "message": message})
            if call == "StopTrainingJob":
                self.stopped.append(read_body(environ)["TrainingJobName"])
                return answer_json(start_response, "200 OK", {})
            if call == "DescribeTrainingJob" and self.states:
                self._advance(read_body(environ)["TrainingJobName"], self.states.pop(0))
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


def read_body(environ: dict[str, Any]) -> dict[str, Any]:
    """The parameters of a call, which can be read again."""
    body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
    environ["wsgi.input"] = io.BytesIO(body)
    parameters: dict[str, Any] = json.loads(body)
    return parameters


def answer_json(start_response: Any, status: str, content: dict[str, Any]) -> list[bytes]:
    start_response(status, [("Content-Type", "application/x-amz-json-1.1")])
    return [json.dumps(content).encode()]


@contextmanager
def service(environment: dict[str, str]) -> Iterator[Service]:
    """Run a service with one bucket."""
    port = free_port()
    running = Service(f"http://127.0.0.1:{port}", environment)
    application = running.wrap(DomainDispatcherApplication(create_backend_app))
    with serving(application, "127.0.0.1", port):
        client(running.endpoint).create_bucket(Bucket=BUCKET)
        yield running
