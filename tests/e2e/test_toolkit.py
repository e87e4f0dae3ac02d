"""A trial of a search, in an image whose entry point is SageMaker's training toolkit."""

import re
from pathlib import Path

import pytest

from support.command import PATIENCE, submit_to_sagemaker
from support.container import images_environment
from support.job_checks import SECRETS, Simulate, assert_model, assert_no_secrets, wait_for
from support.s3_server import BUCKET, client

pytestmark = pytest.mark.e2e
ROLE = "arn:aws:iam::123456789012:role/training"


def test_trial_trains_with_the_values_that_the_tuner_chose(
    aws: str, sdk_environment: dict[str, str], simulate: Simulate, tmp_path: Path
) -> None:
    python, missing = images_environment()
    if missing:
        pytest.skip(missing)
    flags = ["--role", ROLE, "--bucket", BUCKET, "--instance-type", "ml.c5.xlarge", "--no-wait", "--epochs", "1"]
    flags += ["--data", "s3://bucket/tiny", "--tune", "lr=0.05:0.4", "batch-size=24,48"]
    result = submit_to_sagemaker(tmp_path, *flags, **sdk_environment, AWS_ENDPOINT_URL=aws)
    assert result.returncode == 0, result.stdout + result.stderr
    (name,) = re.findall(r"^Tuning: +(\S+)$", result.stdout, re.MULTILINE)
    sagemaker = client(aws, "sagemaker")
    tuning = sagemaker.describe_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)
    request = tuning["TrainingJobDefinition"] | {"TrainingJobName": f"{name}-001-1a2b3c4d"}
    # The tuner picks values from the ranges, quotes choices as JSON, and adds hyperparameters of its own.
    chosen = {"lr": "0.0731", "batch-size": '"48"', "_tuning_objective_metric": "validation_accuracy"}
    request["HyperParameters"] = request["StaticHyperParameters"] | chosen
    job = simulate(request, shm="2g")
    job.start(path=f"{python.parent}:", **SECRETS)
    wait_for(job.hosts[0], "Started:")
    # The toolkit is PID 1 and ignores SIGTERM, so the job continues.
    job.stop()
    assert job.wait(PATIENCE) == {"algo-1": 0}, job.logs()
    (host,) = job.hosts
    assert_model(host)
    assert_no_secrets(host)
    settings = (host.ml / "output" / "data" / "config.json").read_text()
    assert '"lr": 0.0731' in settings and '"batch_size": 48' in settings
    # The tuner reads the objective from this line.
    assert re.search(r"epoch 1/1 .*validation +[0-9.]+%", host.log)

    # The toolkit keeps the reason for a failure.
    failing = simulate(request, "failing")
    no_index = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "1", "PIP_CONFIG_FILE": "/dev/null"}
    failing.start(path=f"{python.parent}:", PIP_IGNORE_INSTALLED="1", **no_index)
    assert failing.wait(PATIENCE)["algo-1"] != 0, failing.logs()
    failure = failing.hosts[0].failure
    assert failure and failure.startswith("packages could not be installed: pip cannot reach its"), failure
