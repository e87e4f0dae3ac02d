"""moto's SageMaker, whose jobs take their time and print a log, and which may refuse calls."""

import io
import json
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from moto.sagemaker.models import sagemaker_backends
from werkzeug.serving import WSGIRequestHandler, make_server

from command import free_port, submit_to_sagemaker
from s3_server import BUCKET, client

LOG_GROUP = "/aws/sagemaker/TrainingJobs"
ACCOUNT = "123456789012"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/training"
# Not the region of s3_server, which a mistake would lead to.
REGION = "eu-west-1"
MACHINE = ("--role", ROLE, "--region", REGION, "--bucket", BUCKET, "--instance-type", "ml.c5.xlarge")


class _Quiet(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002 - the base class's names
        """Be silent: the base class writes to stderr."""


@dataclass(frozen=True)
class Look:
    """What is true of a job when it is looked at: its status, and what its hosts have printed since the last look."""

    status: str
    secondary_status: str
    printed: dict[str, list[str]] = field(default_factory=dict)
    failure_reason: str | None = None


@dataclass
class Service:
    """The service at an endpoint.

    Attributes:
        refusals: code and message of the error that answers a call, by its name; None breaks the connection.
        looks: what each look at a job finds; later ones find what the last one did. With none, a job is completed.
    """

    endpoint: str
    environment: dict[str, str]
    refusals: dict[str, tuple[str, str] | None] = field(default_factory=dict)
    looks: list[Look] = field(default_factory=list)

    def submit(self, cwd: Path, *flags: object) -> subprocess.CompletedProcess[str]:
        """Run submit.py with these credentials, and nothing else of AWS."""
        # What moto does not know it answers with 500, which is tried again for seconds.
        aws = {"AWS_ENDPOINT_URL": self.endpoint, "AWS_MAX_ATTEMPTS": "1"}
        return submit_to_sagemaker(cwd, *MACHINE, *flags, **self.environment, **aws)

    def wrap(self, application: Callable[..., Any]) -> Callable[..., Any]:
        """The same application, with this service's own answers."""

        def answer(environ: dict[str, Any], start_response: Any) -> Any:
            call = environ.get("HTTP_X_AMZ_TARGET", "").rpartition(".")[2]
            if call in self.refusals:
                refusal = self.refusals[call]
                if refusal is None:
                    environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
                    raise ConnectionError
                code, message = refusal
                start_response("400 Bad Request", [("Content-Type", "application/x-amz-json-1.1")])
                return [json.dumps({"__type": code, "message": message}).encode()]
            if call == "DescribeTrainingJob" and self.looks:
                body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
                environ["wsgi.input"] = io.BytesIO(body)
                self._go_on(json.loads(body)["TrainingJobName"], self.looks.pop(0))
            return application(environ, start_response)

        return answer

    def _go_on(self, name: str, look: Look) -> None:
        job = sagemaker_backends[ACCOUNT][REGION].training_jobs[name]
        job.training_job_status, job.secondary_status = look.status, look.secondary_status
        job.failure_reason = look.failure_reason
        logs = client(self.endpoint, "logs", REGION)
        for host, lines in look.printed.items():
            stream = {"logGroupName": LOG_GROUP, "logStreamName": f"{name}/{host}"}
            with suppress(logs.exceptions.ResourceAlreadyExistsException):
                logs.create_log_group(logGroupName=LOG_GROUP)
            with suppress(logs.exceptions.ResourceAlreadyExistsException):
                logs.create_log_stream(**stream)
            now = int(time.time() * 1000)
            logs.put_log_events(**stream, logEvents=[{"timestamp": now, "message": line} for line in lines])


@contextmanager
def service(environment: dict[str, str]) -> Iterator[Service]:
    """A service with one bucket."""
    port = free_port()
    made = Service(f"http://127.0.0.1:{port}", environment)
    application = made.wrap(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", port, application, threaded=True, request_handler=_Quiet)
    serving = threading.Thread(target=server.serve_forever, daemon=True)
    serving.start()
    client(made.endpoint).create_bucket(Bucket=BUCKET)
    try:
        yield made
    finally:
        server.shutdown()
        serving.join()
