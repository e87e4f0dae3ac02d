"""SageMaker jobs whose script is another launcher or main.py itself, with the SDK's `SourceCode(entry_script=...)`."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from sagemaker.train.templates import EXECUTE_BASIC_SCRIPT_DRIVER

from support.command import PATIENCE, ROOT
from support.container import Container
from support.job_checks import TINY, Simulate, Submit

pytestmark = pytest.mark.e2e


def use_entry_script(host: Container, script: str) -> None:
    """Change the SDK's script in the container to the one for `SourceCode(entry_script=script)`, without a command."""
    drivers = host.ml / "input" / "data" / "sm_drivers"
    text = (drivers / "sm_train.sh").read_text()
    start, end = text.index("CMD=$(cat"), text.index('eval "$CMD"') + len('eval "$CMD"')
    (drivers / "sm_train.sh").write_text(text[:start] + EXECUTE_BASIC_SCRIPT_DRIVER + text[end:])
    source = drivers / "sourcecode.json"
    source.write_text(json.dumps(json.loads(source.read_text()) | {"entry_script": script}))


@pytest.fixture(scope="module")
def request_of_job(submit: Submit) -> dict[str, Any]:
    return submit(*TINY, "--epochs", 1, "--batch-size", 60, "--num-workers", 1, "--no-fast-convolutions")


def assert_results_of_main(host: Container) -> None:
    """Assert that main.py left the model and the results where SageMaker collects them, without code for serving."""
    results = {str(path.relative_to(host.ml)) for path in host.ml.glob("model/*")}
    results |= {str(path.relative_to(host.ml)) for path in host.ml.glob("output/data/*")}
    model = {"model/model.safetensors", "model/config.json", "model/metrics.csv"}
    assert results == model | {"output/data/metrics.csv", "output/data/config.json", "output/data/curves.png"}
    assert json.loads(Path(host.ml, "model", "config.json").read_text())["fast_convolutions"] is False


def test_script_of_a_ray_launcher_trains_on_its_cluster_and_leaves_the_model(
    request_of_job: dict[str, Any], simulate: Simulate
) -> None:
    # The launcher's own hyperparameters are before and after those of main.py.
    own = {"include-dashboard": "false", "entrypoint": "ray_app/main.py"}
    hyperparameters = own | request_of_job["HyperParameters"] | {"wait-shutdown": "1"}
    job = simulate(request_of_job | {"HyperParameters": hyperparameters}, shm="2g")
    (host,) = job.hosts
    shutil.copy(ROOT / "tests" / "support" / "ray_launcher.py", host.ml / "input" / "data" / "code" / "launcher.py")
    use_entry_script(host, "launcher.py")
    # At the level of the jobs of submit.py, the SDK's driver would not print the script's output.
    job.start(SM_LOG_LEVEL="20")
    assert job.wait(PATIENCE) == {"algo-1": 0}, job.logs()
    assert "main.py returned, Ray is initialized: True" in host.log
    # Its cluster, the job's channel, and its name.
    assert "Workers:   1 on CPU" in host.log
    assert "/opt/ml/input/data/training: 240 training" in host.log
    assert (host.ml / "checkpoints" / request_of_job["TrainingJobName"] / "model.safetensors").exists()
    assert_results_of_main(host)


def test_plain_script_starts_its_own_ray_cluster_and_leaves_the_model(
    request_of_job: dict[str, Any], simulate: Simulate
) -> None:
    job = simulate(request_of_job, shm="2g")
    (host,) = job.hosts
    use_entry_script(host, "ray_app/main.py")
    job.start(SM_LOG_LEVEL="20")
    assert job.wait(PATIENCE) == {"algo-1": 0}, job.logs()
    assert "/opt/ml/input/data/training: 240 training" in host.log
    assert "Workers:   1 on CPU" in host.log
    assert (host.ml / "checkpoints" / request_of_job["TrainingJobName"] / "model.safetensors").exists()
    assert_results_of_main(host)
    assert host.failure is None


def test_failure_of_a_plain_script_is_the_reason_of_the_job(request_of_job: dict[str, Any], simulate: Simulate) -> None:
    hyperparameters = request_of_job["HyperParameters"] | {"batch-size": "1000"}
    job = simulate(request_of_job | {"HyperParameters": hyperparameters})
    (host,) = job.hosts
    use_entry_script(host, "ray_app/main.py")
    job.start(SM_LOG_LEVEL="20")
    assert job.wait(PATIENCE) == {"algo-1": 2}, job.logs()
    assert host.failure and host.failure.startswith("--batch-size 1000: there are only 240 "), host.failure
    assert not list((host.ml / "model").iterdir())
