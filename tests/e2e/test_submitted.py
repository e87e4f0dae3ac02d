"""Jobs that SageMaker rejects, and what submit.py stores for a job."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.fake_sagemaker import ROLE, Service, service
from support.s3_server import BUCKET, client

pytestmark = pytest.mark.e2e


@pytest.fixture
def sagemaker(sdk_environment: dict[str, str]) -> Iterator[Service]:
    # The region must come from the flags.
    environment = {name: value for name, value in sdk_environment.items() if name != "AWS_DEFAULT_REGION"}
    with service(environment) as running:
        yield running


def test_rejected_role_is_a_one_line_error(sagemaker: Service, tmp_path: Path) -> None:
    reason = f"Could not assume role {ROLE}. Please ensure that the role exists."
    sagemaker.rejections["CreateTrainingJob"] = ("ValidationException", reason)
    result = sagemaker.submit(tmp_path)
    assert result.returncode == 1, result.stdout + result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and line.endswith(reason)
    assert "Job:" not in result.stdout


@pytest.mark.parametrize("search", [(), ("--tune", "lr=0.1:0.2")], ids=["job", "search"])
def test_every_stored_object_is_encrypted_with_the_key(
    search: tuple[str, ...], sagemaker: Service, tiny_data: Path, tmp_path: Path
) -> None:
    prefix = f"keyed{len(search)}"
    result = sagemaker.submit(
        tmp_path, *search, "--job-prefix", prefix, "--kms-key", "alias/mine", "--data", tiny_data, "--no-wait"
    )
    assert result.returncode == 0, result.stdout + result.stderr
    s3 = client(sagemaker.endpoint)
    keys = [item["Key"] for item in s3.list_objects_v2(Bucket=BUCKET, Prefix=prefix)["Contents"]]
    assert any(key.endswith("train.parquet") for key in keys)
    assert any(key.endswith(("launch.py", "sourcedir.tar.gz")) for key in keys)
    found = {key: s3.head_object(Bucket=BUCKET, Key=key).get("SSEKMSKeyId") for key in keys}
    assert set(found.values()) == {"alias/mine"}, found
