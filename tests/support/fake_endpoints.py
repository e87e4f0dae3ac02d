"""moto's SageMaker, extended with UpdateEndpoint, which it lacks."""

import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from moto.applicationautoscaling.models import applicationautoscaling_backends
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from moto.sagemaker.models import sagemaker_backends

from support.command import free_port
from support.s3_server import client, serving

ACCOUNT = "123456789012"
# Not the region of CREDENTIALS, so that a test fails if the program mixes them up.
REGION = "eu-west-1"


@dataclass
class Endpoints:
    """A running service.

    Attributes:
        failure: the reason why an update fails, so that the endpoint returns to its configuration; None: it succeeds.
        rejected: whether updates are rejected at once instead.
        updates: the requests of all updates, each with the number of instances' targets that scale at that moment.
    """

    url: str
    failure: str | None = None
    rejected: bool = False
    updates: list[tuple[dict[str, Any], int]] = field(default_factory=list)

    def client(self, service: str = "sagemaker") -> Any:
        return client(self.url, service, REGION)

    def reset(self) -> None:
        """Remove everything."""
        self.failure, self.rejected = None, False
        self.updates.clear()
        for backends in (sagemaker_backends, applicationautoscaling_backends):
            backends[ACCOUNT][REGION].reset()

    def answer_updates(self, application: Callable[..., Any]) -> Callable[..., Any]:
        """Add UpdateEndpoint to an application."""

        def answer(environ: dict[str, Any], start_response: Any) -> Any:
            if environ.get("HTTP_X_AMZ_TARGET", "") != "SageMaker.UpdateEndpoint":
                return application(environ, start_response)
            request = json.load(io.BytesIO(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))))
            scaling = self.client("application-autoscaling").describe_scalable_targets(ServiceNamespace="sagemaker")
            self.updates.append((request, len(scaling["ScalableTargets"])))
            headers = [("Content-Type", "application/x-amz-json-1.1")]
            if self.rejected:
                start_response("400 Bad Request", headers)
                return [json.dumps({"__type": "ResourceLimitExceeded", "message": "no quota"}).encode()]
            endpoint = sagemaker_backends[ACCOUNT][REGION].endpoints[request["EndpointName"]]
            endpoint.failure_reason = self.failure
            if self.failure is None:
                endpoint.endpoint_config_name = request["EndpointConfigName"]
            start_response("200 OK", headers)
            return [json.dumps({"EndpointArn": endpoint.arn}).encode()]

        return answer


@contextmanager
def endpoints_service() -> Iterator[Endpoints]:
    port = free_port()
    running = Endpoints(f"http://127.0.0.1:{port}")
    application = running.answer_updates(DomainDispatcherApplication(create_backend_app))
    with serving(application, "127.0.0.1", port):
        yield running
