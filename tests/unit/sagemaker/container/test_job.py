import json
import subprocess
from pathlib import Path

import pytest

from sagemaker_entry.container.job import Job, Paths, derive_token, read_job
from sagemaker_entry.container.outcome import JobError, judge_driver
from support.command import main_command


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    (tmp_path / "input" / "config").mkdir(parents=True)
    return Paths(tmp_path)


def describe(paths: Paths, hyperparameters: dict[str, str], *channels: str) -> None:
    (paths.config / "hyperparameters.json").write_text(json.dumps(hyperparameters))
    (paths.config / "inputdataconfig.json").write_text(json.dumps({name: {} for name in (*channels, "code")}))


def test_hyperparameters_become_flags(paths: Paths) -> None:
    describe(paths, {"epochs": "2", "lr": "0.1", "profile": "True", "batch_size": "64"}, "training", "sm_drivers")
    assert read_job(paths, "job-7", 1).command_line() == [
        "--epochs=2",
        "--lr=0.1",
        "--profile",
        "--batch-size=64",
        f"--data={paths.root}/input/data/training",
        "--data-dir=/tmp/cifar10",
        f"--storage-path={paths.root}/checkpoints",
        "--run-name=job-7",
    ]


def test_newline_in_a_hyperparameter_is_reported_in_one_line(paths: Paths) -> None:
    describe(paths, {"epochs": "1\n2"})
    command = main_command(*read_job(paths, "job", 1).command_line())
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    reason = judge_driver(result.returncode, result.stderr.splitlines(), False).reason
    assert result.returncode == 2 and "--epochs" in reason and len(reason.splitlines()) == 1, result.stderr


def test_false_becomes_a_negated_flag() -> None:
    assert Job({"profile": "false"}).command_line() == ["--no-profile"]


def test_hyperparameters_of_sagemaker_itself_are_ignored(paths: Paths) -> None:
    added = {"sagemaker_program": "launch.py", "_tuning_objective_metric": "validation_accuracy"}
    describe(paths, {"epochs": "2", **added})
    assert set(read_job(paths, "job", 1).flags) == {"epochs", "data", "data-dir", "storage-path", "run-name"}


def test_resumed_run_keeps_its_name_and_data(paths: Paths) -> None:
    describe(paths, {"resume": "job-1"})
    job = read_job(paths, "job-2", 1)
    assert job.run_name == "job-1"
    assert not {"run-name", "data"} & set(job.flags)


@pytest.mark.parametrize(
    ("given", "data"), [({}, "cifar10"), ({"data": "auto"}, "cifar10"), ({"data": "sample"}, "sample")]
)
def test_job_trains_on_the_sample_only_if_it_is_named(given: dict[str, str], data: str, paths: Paths) -> None:
    describe(paths, given)
    assert read_job(paths, "job", 1).flags["data"] == data


def test_error_names_the_wrong_channel(paths: Paths) -> None:
    describe(paths, {}, "train", "sm_drivers")
    with pytest.raises(JobError, match="data channel train: expected one named training") as caught:
        read_job(paths, "job", 1)
    assert caught.value.verdict.code == 2


def test_several_hosts_need_shared_storage(paths: Paths) -> None:
    describe(paths, {})
    with pytest.raises(JobError, match="storage-path"):
        read_job(paths, "job", 2)
    describe(paths, {"storage-path": "s3://bucket/runs"})
    assert read_job(paths, "job", 2).storage_path == "s3://bucket/runs"


def test_token_depends_on_the_job_and_the_secret(tmp_path: Path) -> None:
    secret = tmp_path / "job-secret"
    secret.write_bytes(b"x" * 32)
    tokens = {derive_token(secret, name, 2) for name in ("a", "b")}
    assert len(tokens) == 2
    assert derive_token(secret, "a", 2) in tokens
    secret.write_bytes(b"y" * 32)
    assert derive_token(secret, "a", 2) not in tokens


def test_only_several_hosts_need_a_secret(tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    assert derive_token(absent, "job", 1) != derive_token(absent, "job", 1)
    with pytest.raises(JobError, match="job-secret"):
        derive_token(absent, "job", 2)
