"""Runs whose data and run folder lie on S3."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from command import MAIN, PREDICT, free_port, run_main, wait_until
from s3_server import BUCKET, CREDENTIALS, client, s3_server

pytestmark = pytest.mark.e2e

FLAGS = ("--num-workers", 0, "--batch-size", 24, "--precision", "fp32", "--epochs", 3)
STORAGE = ("--storage-path", f"s3://{BUCKET}/runs")


@pytest.fixture(scope="module")
def endpoint(tiny_data: Path) -> Iterator[str]:
    with s3_server(free_port()) as url:
        for file in tiny_data.iterdir():
            client(url).upload_file(str(file), BUCKET, f"data/{file.name}")
        yield url


def keys(endpoint: str, prefix: str) -> list[str]:
    return [item["Key"] for item in client(endpoint).list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])]


def test_killed_run_on_s3_resumes_to_the_same_weights_and_predicts_from_its_uri(
    endpoint: str, tiny_data: Path, tmp_path: Path
) -> None:
    environment = CREDENTIALS | {"AWS_ENDPOINT_URL": endpoint}
    calm = run_main(*FLAGS, "--data", tiny_data, "--run-name", "calm", cwd=tmp_path)
    assert calm.returncode == 0, calm.stderr
    flags = [*FLAGS, *STORAGE, "--data", f"s3://{BUCKET}/data", "--run-name", "killed"]
    command = [str(part) for part in (sys.executable, MAIN, *flags, "--checkpoint-every-seconds", 0.2)]
    with subprocess.Popen(command, cwd=tmp_path, env=os.environ | environment) as process:
        manifest = "manifest.json"
        wait_until(lambda: any(key.endswith(manifest) for key in keys(endpoint, "runs/killed/")), seconds=60)
        process.send_signal(signal.SIGKILL)
    resumed = run_main("--resume", "killed", *STORAGE, cwd=tmp_path, **environment)
    assert resumed.returncode == 0, resumed.stderr
    assert "Resumed at step" in resumed.stdout
    model = client(endpoint).get_object(Bucket=BUCKET, Key="runs/killed/model.safetensors")["Body"].read()
    assert model == (tmp_path / "runs/calm/model.safetensors").read_bytes()
    predict = [sys.executable, str(PREDICT), f"s3://{BUCKET}/runs/killed", "--data", f"s3://{BUCKET}/data"]
    result = subprocess.run(predict, env=os.environ | environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "of 60 test images" in result.stdout


def test_bucket_that_does_not_exist_is_refused(endpoint: str, tmp_path: Path) -> None:
    environment = CREDENTIALS | {"AWS_ENDPOINT_URL": endpoint}
    flags = ("--data", "sample", "--storage-path", "s3://no-such-bucket/runs")
    result = run_main(*FLAGS, *flags, cwd=tmp_path, **environment)
    assert result.returncode == 2
    assert "--storage-path s3://no-such-bucket/runs cannot be" in result.stderr.splitlines()[-1]
