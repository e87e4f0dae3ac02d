"""Runs with their data and run folder on S3."""

import itertools
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.faults.cluster.s3_proxy import BROKEN, DROPPED, FORBIDDEN, STALLED, THROTTLED, Fault, fault_proxy
from support.command import (
    PATIENCE,
    PREDICT,
    PREPARE,
    free_port,
    main_command,
    own_output,
    process_tree,
    run_main,
    send,
    started,
    wait_until,
)
from support.s3_server import BUCKET, CREDENTIALS, client, s3_server

pytestmark = pytest.mark.e2e

FLAGS = ("--num-workers", 0, "--recipe", "classic", "--batch-size", 24, "--precision", "fp32", "--epochs", 2)
WRITES = ("PUT", "POST", "DELETE")
STORAGE = ("--storage-path", f"s3://{BUCKET}/runs")


@pytest.fixture(scope="module")
def endpoint(tiny_data: Path) -> Iterator[str]:
    with s3_server(free_port()) as url:
        for file in tiny_data.iterdir():
            client(url).upload_file(str(file), BUCKET, f"data/{file.name}")
        yield url


@pytest.fixture(scope="module")
def undisturbed(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The model of an undisturbed run on a disk."""
    cwd = tmp_path_factory.mktemp("undisturbed")
    result = run_main(*FLAGS, "--data", tiny_data, "--run-name", "run", cwd=cwd)
    assert result.returncode == 0, result.stderr
    return (cwd / "runs/run/model.safetensors").read_bytes()


def keys(endpoint: str, prefix: str) -> list[str]:
    return [item["Key"] for item in client(endpoint).list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])]


def has_checkpoint(endpoint: str, run: str) -> bool:
    return any(key.endswith("manifest.json") for key in keys(endpoint, f"runs/{run}/"))


def model(endpoint: str, run: str) -> bytes:
    content: bytes = client(endpoint).get_object(Bucket=BUCKET, Key=f"runs/{run}/model.safetensors")["Body"].read()
    return content


def test_killed_run_on_s3_resumes_to_the_same_weights_and_predicts_from_its_uri(
    endpoint: str, undisturbed: bytes, tmp_path: Path
) -> None:
    environment = CREDENTIALS | {"AWS_ENDPOINT_URL": endpoint}
    flags = [*FLAGS, *STORAGE, "--data", f"s3://{BUCKET}/data", "--run-name", "killed"]
    with started(tmp_path, main_command(*flags, "--checkpoint-every-seconds", 0.2), **environment) as process:
        wait_until(lambda: has_checkpoint(endpoint, "killed"))
        process.send_signal(signal.SIGKILL)
    resumed = run_main("--resume", "killed", *STORAGE, cwd=tmp_path, **environment)
    assert resumed.returncode == 0, resumed.stderr
    assert "Resumed at step" in resumed.stdout
    assert model(endpoint, "killed") == undisturbed
    names = {key.rpartition("/")[2] for key in keys(endpoint, "runs/killed/")}
    assert names >= {"chosen.json", "events.out.tfevents", "metrics.csv"} and "progress.json" not in names
    predict = [sys.executable, str(PREDICT), f"s3://{BUCKET}/runs/killed", "--data", f"s3://{BUCKET}/data"]
    result = subprocess.run(predict, env=os.environ | environment, capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 0, result.stderr
    assert "of 60 test images" in result.stdout


def test_images_are_prepared_to_a_uri_and_a_second_command_skips_them(endpoint: str, tmp_path: Path) -> None:
    for name in ("ant", "bee"):
        (tmp_path / name).mkdir()
        for i in range(4):
            Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / name / f"{i}.png")
    command = [sys.executable, str(PREPARE), str(tmp_path), f"s3://{BUCKET}/prepared"]
    environment = os.environ | CREDENTIALS | {"AWS_ENDPOINT_URL": endpoint}
    first, second = (
        subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE) for _ in range(2)
    )
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert first.stdout.count("already written") == 0 and second.stdout.count("already written") == 2
    expected = [f"prepared/{split}-00000-of-00001.parquet" for split in ("test", "train")]
    assert keys(endpoint, "prepared/") == expected


def test_bucket_that_does_not_exist_is_refused(endpoint: str, tmp_path: Path) -> None:
    environment = CREDENTIALS | {"AWS_ENDPOINT_URL": endpoint}
    flags = ("--data", "sample", "--storage-path", "s3://no-such-bucket/runs")
    result = run_main(*FLAGS, *flags, cwd=tmp_path, **environment)
    assert result.returncode == 2
    assert "--storage-path s3://no-such-bucket/runs cannot be" in result.stderr.splitlines()[-1]


def first_requests_fail(*faults: Fault, times: int) -> Callable[[str, str], Fault | None]:
    """Inject faults, in turn, into the first requests of each kind for each object."""
    turns, seen = itertools.cycle(faults), Counter[tuple[str, str]]()

    def choose(method: str, path: str) -> Fault | None:
        seen[method, path] += 1
        return next(turns) if seen[method, path] <= times else None

    return choose


def test_throttled_and_broken_s3_is_retried_and_the_weights_are_the_same(
    endpoint: str, undisturbed: bytes, tmp_path: Path
) -> None:
    flags = [*FLAGS, *STORAGE, "--data", f"s3://{BUCKET}/data", "--num-workers", 0, "--run-name", "throttled"]
    with fault_proxy(endpoint) as (proxy, url):
        proxy.choose = first_requests_fail(THROTTLED, BROKEN, DROPPED, times=2)
        result = run_main(*flags, cwd=tmp_path, **CREDENTIALS, AWS_ENDPOINT_URL=url)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Traceback" not in own_output(result.stdout + result.stderr)
    assert proxy.faults > 20
    assert model(endpoint, "throttled") == undisturbed


def test_run_waits_for_s3_that_stalls(endpoint: str, undisturbed: bytes, tmp_path: Path) -> None:
    with fault_proxy(endpoint) as (proxy, url):
        numbers = itertools.count()
        proxy.choose = lambda _method, _path: STALLED if next(numbers) % 10 == 5 else None
        flags = [*FLAGS, *STORAGE, "--data", f"s3://{BUCKET}/data", "--run-name", "stalled"]
        result = run_main(*flags, cwd=tmp_path, **CREDENTIALS, AWS_ENDPOINT_URL=url)
    assert result.returncode == 0, result.stdout + result.stderr
    assert proxy.faults >= 3
    assert model(endpoint, "stalled") == undisturbed


@pytest.mark.slow
def test_frozen_run_that_another_command_continued_ends_without_writing(
    endpoint: str, undisturbed: bytes, tmp_path: Path
) -> None:
    run = "frozen"
    flags = [*FLAGS, *STORAGE, "--data", f"s3://{BUCKET}/data", "--num-workers", 2, "--run-name", run]
    requests: list[tuple[str, str]] = []
    with fault_proxy(endpoint) as (proxy, url):
        # No checkpoints: a request that is on its way when its process is frozen arrives when it wakes.
        command = main_command(*flags, "--checkpoint-every-seconds", 3600)
        with started(tmp_path, command, **CREDENTIALS, AWS_ENDPOINT_URL=url) as process:
            wait_until(lambda: f"runs/{run}/startup.json" in keys(endpoint, f"runs/{run}/"))
            frozen = process_tree(process.pid)
            send(signal.SIGSTOP, frozen)
            resume = ("--resume", run, "--num-workers", 0, *STORAGE)
            resumed = run_main(*resume, cwd=tmp_path, **CREDENTIALS, AWS_ENDPOINT_URL=endpoint)
            proxy.choose = lambda method, path: requests.append((method, path))  # type: ignore[func-returns-value]
            woken_at = time.monotonic()
            send(signal.SIGCONT, frozen)
            output, _ = process.communicate(timeout=PATIENCE)
            assert time.monotonic() - woken_at < 60
    assert resumed.returncode == 0, resumed.stderr
    assert f"run {run} may still be running" in resumed.stdout
    assert process.returncode == 1, output
    assert f"error: another command has taken over run {run}, " in output
    assert "Traceback" not in own_output(output)
    written = {path.partition("?")[0].rpartition("/")[2] for method, path in requests if method in WRITES}
    assert written <= {"lease.json"}, requests
    assert model(endpoint, run) == undisturbed


def test_lost_permission_ends_the_run_and_leaves_the_last_checkpoint_to_resume_from(
    endpoint: str, undisturbed: bytes, tmp_path: Path
) -> None:
    run = "forbidden"
    flags = [*FLAGS, *STORAGE, "--data", f"s3://{BUCKET}/data", "--num-workers", 1, "--run-name", run]
    with fault_proxy(endpoint) as (proxy, url):
        command = main_command(*flags, "--checkpoint-every-seconds", 0.2)
        with started(tmp_path, command, **CREDENTIALS, AWS_ENDPOINT_URL=url) as process:
            wait_until(lambda: has_checkpoint(endpoint, run))
            proxy.choose = lambda method, _: FORBIDDEN if method in WRITES else None
            output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1, output
    assert f"error: s3://{BUCKET}/runs/{run} cannot be written: " in output
    assert "Traceback" not in own_output(output)
    assert f"--resume {run}" in output
    resume = ("--resume", run, "--num-workers", 0, *STORAGE)
    resumed = run_main(*resume, cwd=tmp_path, **CREDENTIALS, AWS_ENDPOINT_URL=endpoint)
    assert resumed.returncode == 0, resumed.stderr
    assert "Resumed at step" in resumed.stdout
    assert model(endpoint, run) == undisturbed
