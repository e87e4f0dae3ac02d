"""Conditional writes go where pyarrow's requests go."""

import pytest
from pyarrow import fs

from support.s3_server import CREDENTIALS
from vgg_ddp.run.conditional import UnsupportedError, _client
from vgg_ddp.run.storage import Folder


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("uri", "endpoint", "region"),
    [
        ("s3://bucket/runs?endpoint_override=minio:9000&scheme=http", "http://minio:9000", "us-east-1"),
        ("s3://bucket/runs?endpoint_override=https://minio&region=eu-west-1", "https://minio", "eu-west-1"),
        ("s3://bucket/runs?region=eu-west-1", "https://s3.eu-west-1.amazonaws.com", "eu-west-1"),
    ],
)
def test_options_of_the_uri_are_kept(uri: str, endpoint: str, region: str) -> None:
    client = _client(Folder.at(uri).filesystem)
    assert (client.meta.endpoint_url, client.meta.region_name) == (endpoint, region)


def test_endpoint_of_the_environment_and_own_keys_and_proxy_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://ignored:1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    client = _client(Folder.at("s3://own:key@bucket/runs?region=us-east-1").filesystem)
    assert client.meta.endpoint_url == "http://127.0.0.1:9" and client.meta.config.proxies == {}
    assert client.meta.config.s3["addressing_style"] == "path"
    signed = client.generate_presigned_url("get_object", {"Bucket": "bucket", "Key": "key"})
    assert signed.startswith("http://127.0.0.1:9/bucket/key?") and "=own&" in signed
    proxied = fs.S3FileSystem(region="us-east-1", proxy_options="http://proxy:3128")
    assert _client(proxied).meta.config.proxies == dict.fromkeys(("http", "https"), "http://proxy:3128")


def test_profile_that_does_not_exist_means_that_there_is_no_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "missing")
    with pytest.raises(UnsupportedError, match=r"boto3 cannot be used .*missing"):
        _client(Folder.at("s3://bucket/runs?region=us-east-1").filesystem)
