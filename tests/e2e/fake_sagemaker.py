"""moto's SageMaker, made to refuse calls."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

from command import ROOT, free_port
from s3_server import BUCKET, client

SUBMIT = ROOT / "sagemaker_entry" / "submit.py"
ROLE = "arn:aws:iam::123456789012:role/training"
MACHINE = ("--role", ROLE, "--region", "us-east-1", "--bucket", BUCKET, "--instance-type", "ml.c5.xlarge")


class _Quiet(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002 - the base class's names
        """Be silent: the base class writes to stderr."""


@dataclass
class Service:
    """The service at an endpoint.

    Attributes:
        refusals: code and message of the error that answers a call, by its name.
    """

    endpoint: str
    environment: dict[str, str]
    refusals: dict[str, tuple[str, str]] = field(default_factory=dict)

    def submit(self, cwd: Path, *flags: object) -> subprocess.CompletedProcess[str]:
        """Run submit.py with these credentials, and nothing else of AWS."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "SAGEMAKER_"))}
        # What moto does not know it answers with 500, which is tried again for seconds.
        aws = {"AWS_ENDPOINT_URL": self.endpoint, "AWS_MAX_ATTEMPTS": "1"}
        command = [sys.executable, str(SUBMIT), *MACHINE, *map(str, flags)]
        return subprocess.run(
            command, cwd=cwd, env=clean | self.environment | aws, capture_output=True, text=True, timeout=120
        )

    def wrap(self, application: Callable[..., Any]) -> Callable[..., Any]:
        """The same application, with this service's own answers."""

        def answer(environ: dict[str, Any], start_response: Any) -> Any:
            call = environ.get("HTTP_X_AMZ_TARGET", "").rpartition(".")[2]
            if call in self.refusals:
                code, message = self.refusals[call]
                start_response("400 Bad Request", [("Content-Type", "application/x-amz-json-1.1")])
                return [json.dumps({"__type": code, "message": message}).encode()]
            return application(environ, start_response)

        return answer


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
