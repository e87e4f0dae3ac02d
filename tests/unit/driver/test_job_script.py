import json
from pathlib import Path

import pytest

from vgg_ddp.driver import job_script
from vgg_ddp.driver.job_script import job_arguments, leave_results, reported_to_job
from vgg_ddp.flags import UsageError
from vgg_ddp.result import RunResult


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder /opt/ml of a job with one host."""
    (tmp_path / "output").mkdir()
    (tmp_path / "checkpoints").mkdir()
    monkeypatch.setattr(job_script, "CHECKPOINTS", tmp_path / "checkpoints")
    variables = {"SM_MODEL_DIR": "model", "SM_OUTPUT_DIR": "output", "SM_OUTPUT_DATA_DIR": "output/data"}
    for name, folder in variables.items():
        monkeypatch.setenv(name, str(tmp_path / folder))
    monkeypatch.setenv("TRAINING_JOB_NAME", "job-7")
    monkeypatch.setenv("SM_HOSTS", '["algo-1"]')
    return tmp_path


def test_arguments_outside_of_a_job_are_unchanged() -> None:
    assert job_arguments(["--profile", "true"]) == ["--profile", "true"]


def test_job_resumes_under_its_name_and_never_falls_back_to_the_sample(job: Path) -> None:
    defaults = ["--data=cifar10", "--run-name=job-7", f"--storage-path={job}/checkpoints"]
    assert job_arguments(["--epochs", "1"]) == [*defaults, "--epochs", "1"]
    assert job_arguments(["--resume", "job-6", "--storage_path=x"]) == ["--resume", "job-6", "--storage_path=x"]


@pytest.mark.usefixtures("job")
def test_channel_named_training_is_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SM_CHANNEL_TRAINING", "/opt/ml/input/data/training")
    assert "--data=/opt/ml/input/data/training" in job_arguments([])
    assert not any("/opt/ml" in argument for argument in job_arguments(["--data", "sample"]))


@pytest.mark.usefixtures("job")
def test_hyperparameters_true_and_false_become_switches() -> None:
    given = ["--profile", "true", "--fast_convolutions", "False", "--run-name", "true"]
    assert job_arguments(given)[-4:] == ["--profile", "--no-fast-convolutions", "--run-name", "true"]


@pytest.mark.usefixtures("job")
def test_hosts_that_would_train_alone_or_store_alone_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SM_HOSTS", json.dumps(["algo-1", "algo-2"]))
    with pytest.raises(UsageError, match="the job has 2 hosts, and each of them would train alone"):
        job_arguments([])
    with pytest.raises(UsageError, match="give --storage-path an S3 URI"):
        job_arguments(["--address", "auto"])
    assert job_arguments(["--address", "auto", "--storage-path", "s3://bucket/runs"])


def test_results_are_left_where_sagemaker_collects_them(job: Path) -> None:
    run = job / "checkpoints" / "job-7"
    run.mkdir()
    for name in ("model.safetensors", "metrics.csv", "config.json", "curves.png", "checkpoint"):
        (run / name).write_text(name)
    leave_results(RunResult("job-7", str(run), "finished", [], "model"), str(run.parent))
    assert {file.name for file in (job / "model").iterdir()} == {"model.safetensors", "metrics.csv", "config.json"}
    assert {file.name for file in (job / "output" / "data").iterdir()} == {"metrics.csv", "config.json", "curves.png"}


def test_failure_file_has_the_reason(job: Path) -> None:
    (job / "output").rmdir()
    with pytest.raises(UsageError), reported_to_job():
        raise UsageError("--lr -1: expected a positive number.")
    failure = job / "output" / "failure"
    assert failure.read_text() == "--lr -1: expected a positive number."
    failure.unlink()
    leave_results(RunResult("job-7", "", "stopped", [], signal_number=15), "")
    assert failure.read_text() == "stopped by SIGTERM"
    assert not (job / "model").exists()
