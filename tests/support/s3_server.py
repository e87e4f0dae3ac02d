"""A simulated AWS on loopback or another address of this machine: moto's server."""

import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import boto3
from werkzeug.serving import WSGIRequestHandler, make_server

from support.command import wait_until

BUCKET = "bucket"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@contextmanager
def aws_server(port: int, host: str = "127.0.0.1") -> Iterator[str]:
    """Run moto's server; yield the endpoint of an empty AWS account."""
    command = [str(Path(sys.executable).with_name("moto_server")), "-H", host, "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: _answers(host, port))
        yield f"http://{host}:{port}"
    finally:
        process.kill()
        process.wait()


@contextmanager
def s3_server(port: int, host: str = "127.0.0.1") -> Iterator[str]:
    """Run moto's server; yield the endpoint of an account with one bucket."""
    with aws_server(port, host) as endpoint:
        client(endpoint).create_bucket(Bucket=BUCKET)
        yield endpoint


def uri_of(endpoint: str, path: str) -> str:
    """The URI of a path in the bucket, which says where the server is."""
    host = endpoint.removeprefix("http://")
    return f"s3://{BUCKET}/{path}?endpoint_override={host}&scheme=http&region={CREDENTIALS['AWS_DEFAULT_REGION']}"


class _Quiet(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002 - the base class's names
        """Print nothing; the base class writes to stderr."""


@contextmanager
def serving(application: Callable[..., Any], host: str, port: int) -> Iterator[None]:
    """Serve a WSGI application from a thread of this process."""
    server = make_server(host, port, application, threaded=True, request_handler=_Quiet)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()


def _answers(host: str, port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0


@cache
def client(endpoint: str, service: str = "s3", region: str = CREDENTIALS["AWS_DEFAULT_REGION"]):  # type: ignore[no-untyped-def]
    """A boto3 client for the server; created once, because boto3 takes a while to create it."""
    return boto3.client(
        service,
        endpoint_url=endpoint,
        region_name=region,
        aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
    )
