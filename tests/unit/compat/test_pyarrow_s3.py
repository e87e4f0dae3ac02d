"""S3 filesystems keep their retry limit, or fall back to pyarrow's if its pickle format changes."""

import pickle

import pytest
from pyarrow import fs

from vgg_ddp.compat import pyarrow_s3
from vgg_ddp.compat.pyarrow_s3 import PatientS3FileSystem, with_patience


def test_pickled_filesystem_keeps_its_retries_or_falls_back(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    strategies: list[fs.AwsDefaultS3RetryStrategy] = []
    strategy = fs.AwsDefaultS3RetryStrategy
    monkeypatch.setattr(
        fs, "AwsDefaultS3RetryStrategy", lambda **options: strategies.append(options) or strategy(**options)
    )
    plain = fs.S3FileSystem(region="eu-north-1", anonymous=True, endpoint_override="127.0.0.1:1")
    patient = with_patience(plain)
    restored = pickle.loads(pickle.dumps(patient))
    assert type(patient) is type(restored) is PatientS3FileSystem
    assert strategies == [{"max_attempts": pyarrow_s3.S3_ATTEMPTS}] * 2
    assert restored.region == "eu-north-1"
    assert restored.__reduce__()[1][0]["endpoint_override"] == "127.0.0.1:1"
    assert restored.__reduce__()[1][0]["allow_delayed_open"]
    assert not caplog.records
    monkeypatch.setattr(pyarrow_s3, "s3_options", lambda _: {"another": "option"})
    assert with_patience(plain) is plain
    assert len(caplog.records) == 1


@pytest.mark.parametrize("shape", [(dict, ()), (dict, ({}, {})), "name", None])
def test_changed_pickle_format_falls_back_to_pyarrows_filesystem(
    shape: object, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Changed:
        def __reduce__(self) -> object:
            return shape

    changed = Changed()
    for _ in range(2):
        assert with_patience(changed) is changed
    assert len(caplog.records) == 1
    patient = PatientS3FileSystem(region="eu-north-1", anonymous=True)
    monkeypatch.setattr(pyarrow_s3, "s3_options", lambda _: None)
    assert isinstance(pickle.loads(pickle.dumps(patient)), fs.S3FileSystem)
