"""The quick start notebook runs from top to bottom."""

import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from support.command import PATIENCE, ROOT


@pytest.mark.slow
def test_quick_start_notebook_trains_plots_predicts_and_resumes(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With a smaller sample, which trains faster.
    shutil.copytree(ROOT / "ray_app", tmp_path / "ray_app", ignore=shutil.ignore_patterns("sample", "__pycache__"))
    shutil.copytree(tiny_data, tmp_path / "ray_app" / "sample")
    folder = tmp_path / "docs"
    folder.mkdir()
    shutil.copy(ROOT / "docs" / "quickstart.ipynb", folder)
    # Instead of the user's settings of Jupyter.
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(folder / "quickstart.ipynb", as_version=4)
    NotebookClient(
        notebook, timeout=PATIENCE, kernel_name="python3", resources={"metadata": {"path": folder}}
    ).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    # The run of two epochs, and the third one after the resume.
    assert [printed.count(f"epoch {epoch}/{epochs}  loss ") for epoch, epochs in ((1, 2), (2, 2), (3, 3))] == [1, 1, 1]
    assert "finished " in printed
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 2
    (run,) = (folder / "runs").iterdir()
    assert (run / "model.safetensors").is_file()
