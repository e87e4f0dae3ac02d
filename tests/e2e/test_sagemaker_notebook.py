"""The SageMaker notebook runs from top to bottom: its jobs in simulated containers, its endpoint in a model server."""

import json
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from support.command import PATIENCE, ROOT
from support.container import Network
from support.fake_sagemaker import ROLE
from support.job_checks import steps
from support.live_sagemaker import live_sagemaker
from support.s3_server import BUCKET, CREDENTIALS

pytestmark = pytest.mark.e2e


def test_notebook_submits_follows_resumes_deploys_predicts_and_deletes(
    net: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ray_app", "sagemaker_entry"):
        (tmp_path / name).symlink_to(ROOT / name)
    folder = tmp_path / "docs"
    folder.mkdir()
    shutil.copy(ROOT / "docs" / "sagemaker.ipynb", folder)
    # Instead of the user's settings of Jupyter.
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(folder / "sagemaker.ipynb", as_version=4)
    # The default bucket has the number of the account in its name, which the SDK asks AWS for, not moto.
    modules = {"TelemetryOptOut": True, "Session": {"DefaultS3Bucket": BUCKET}}
    defaults = tmp_path / "sagemaker.yaml"
    defaults.write_text(json.dumps({"SchemaVersion": "1.0", "SageMaker": {"PythonSDK": {"Modules": modules}}}))
    with live_sagemaker(net, tmp_path / "hosts") as aws:
        environment = {"AWS_ENDPOINT_URL": aws.endpoint, "SAGEMAKER_ROLE_ARN": ROLE}
        environment |= CREDENTIALS | {"SAGEMAKER_USER_CONFIG_OVERRIDE": str(defaults)}
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        resources = {"metadata": {"path": folder}}
        NotebookClient(notebook, timeout=PATIENCE, kernel_name="python3", resources=resources).execute()
    killed, resumed = aws.jobs.values()
    assert "Started:" in killed.log and "finished " not in killed.log
    assert steps(r"Resumed at step (\d+)", resumed) != []
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "NotCompletedError: the job did not complete: AlgorithmError: , exit code: 137" in printed
    # Followed from its first line to its last one, while it ran.
    for host in (killed, resumed):
        assert [line for line in host.log.splitlines() if line and line not in printed] == []
    assert "Status:    Completed" in printed
    (table, picture) = [output for output in outputs if "data" in output]
    assert "test_accuracy" in table["data"]["text/html"]
    assert "image/png" in picture["data"]
