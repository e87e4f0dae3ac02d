"""Secrets given by their ARN, from moto's Secrets Manager."""

from collections.abc import Iterator

import pytest

from sagemaker_entry.container.entry import Entry
from sagemaker_entry.container.hosts import Cluster, Host
from sagemaker_entry.container.outcome import BAD_INPUT, JobError, Redactor
from sagemaker_entry.container.secret_values import fetch_secrets
from support.command import free_port
from support.s3_server import CREDENTIALS, aws_server, client

VALUE = "https://me:pass-word@index/simple"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with aws_server(free_port()) as url:
        yield url


@pytest.fixture(autouse=True)
def aws(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)


def test_variable_gets_the_value_of_the_secret_and_the_log_does_not(
    endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not the region of the credentials.
    arn = client(endpoint, "secretsmanager", "eu-west-1").create_secret(Name="index", SecretString=VALUE)["ARN"]
    monkeypatch.setenv("PIP_INDEX_URL", arn)
    monkeypatch.setenv("OTHER", "arn:aws:s3:::bucket")
    host, redact = Host("algo-1", "", "ml.c5.large"), Redactor({})
    entry = Entry(Cluster((host,), host, "eth0"), redact, "job")
    entry.prepare_environment("token-of-the-job")
    assert entry.environment["PIP_INDEX_URL"] == VALUE
    assert entry.environment["OTHER"] == "arn:aws:s3:::bucket"
    assert "pass-word" not in redact(f"Looking in indexes: {VALUE}")


def test_secret_that_cannot_be_read_is_named(endpoint: str) -> None:
    arn = "arn:aws:secretsmanager:us-east-1:123456789012:secret:missing"
    with pytest.raises(JobError) as caught:
        fetch_secrets({"DB_PASSWORD": arn})
    assert caught.value.verdict.code == BAD_INPUT
    assert caught.value.verdict.reason.startswith("the secret of DB_PASSWORD cannot be read: ")
    secrets = client(endpoint, "secretsmanager")
    binary = secrets.create_secret(Name="binary", SecretBinary=b"\x00")["ARN"]
    with pytest.raises(JobError, match="the secret of DB_PASSWORD is binary: expected text"):
        fetch_secrets({"DB_PASSWORD": binary})
