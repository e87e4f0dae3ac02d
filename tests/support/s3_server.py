"""A simulated AWS on loopback or another address of this machine: moto's server."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import boto3

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
