"""SageMaker jobs that another launcher starts, with the SDK's `SourceCode(entry_script=...)`."""

import json
import shutil
from pathlib import Path

import pytest

from support.command import PATIENCE, ROOT
from support.container import Container
from support.job_checks import TINY, Simulate, Submit

pytestmark = pytest.mark.e2e


def use_entry_script(host: Container, script: str) -> None:
    """Change the SDK's script in the container to the one for `SourceCode(entry_script=script)`, without a command."""
    drivers = host.ml / "input" / "data" / "sm_drivers"
    text = (drivers / "sm_train.sh").read_text()
    start, end = text.index("CMD=$(cat"), text.index('eval "$CMD"') + len('eval "$CMD"')
    driver = "$SM_PYTHON_CMD /opt/ml/input/data/sm_drivers/distributed_drivers/basic_script_driver.py"
    (drivers / "sm_train.sh").write_text(text[:start] + driver + text[end:])
    source = drivers / "sourcecode.json"
    source.write_text(json.dumps(json.loads(source.read_text()) | {"entry_script": script}))


def test_script_of_a_ray_launcher_trains_on_its_cluster_and_leaves_the_model(
    submit: Submit, simulate: Simulate
) -> None:
    request = submit(*TINY, "--epochs", 1, "--batch-size", 60, "--num-workers", 1, "--no-fast-convolutions")
    # The launcher's own hyperparameters are before and after those of main.py.
    own = {"include-dashboard": "false", "entrypoint": "ray_app/main.py"}
    request["HyperParameters"] = own | request["HyperParameters"] | {"wait-shutdown": "1"}
    job = simulate(request, shm="2g")
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
    assert (host.ml / "checkpoints" / request["TrainingJobName"] / "model.safetensors").exists()
    results = {str(path.relative_to(host.ml)) for path in host.ml.glob("model/*")}
    results |= {str(path.relative_to(host.ml)) for path in host.ml.glob("output/data/*")}
    model = {"model/model.safetensors", "model/config.json", "model/metrics.csv"}
    assert results == model | {"output/data/metrics.csv", "output/data/config.json", "output/data/curves.png"}
    assert json.loads(Path(host.ml, "model", "config.json").read_text())["fast_convolutions"] is False
