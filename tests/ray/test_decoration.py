"""What only shows or repeats results may fail; the weights may not."""

import re
import shutil
from pathlib import Path

import pytest

from support.command import main_command, run_main, run_on_terminal
from vgg_ddp.run.files import read_metrics
from vgg_ddp.run.storage import Folder

pytestmark = pytest.mark.slow

FLAGS: tuple[object, ...] = ("--num-workers", 0, "--run-name", "run", "--recipe", "classic", "--precision", "fp32")
FLAGS += ("--epochs", 2)


@pytest.fixture(scope="module")
def undisturbed(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of an undisturbed run."""
    cwd = tmp_path_factory.mktemp("undisturbed")
    result = run_main(*FLAGS, "--data", tiny_data, cwd=cwd)
    assert result.returncode == 0, result.stderr
    return cwd / "runs/run"


def test_failures_of_what_only_shows_results_cost_neither_the_weights_nor_the_exit_code(
    undisturbed: Path, tiny_data: Path, tmp_path: Path
) -> None:
    errors = {
        "matplotlib": "ImportError('libfreetype.so.6')",
        "tensorboardX": "TypeError('Descriptors cannot be created directly')",
        "mlflow": "RuntimeError('broken')",
        "rich": "ImportError('broken')",
    }
    for package, error in errors.items():
        (tmp_path / "broken" / package).mkdir(parents=True)
        (tmp_path / "broken" / package / "__init__.py").write_text(f"raise {error}")
    for name in ("chosen.json", "progress.json", "curves.png"):
        (tmp_path / "runs/run" / name / "not empty").mkdir(parents=True)
    command = main_command(*FLAGS, "--data", tiny_data, "--mlflow", "local")
    exit_code, output = run_on_terminal(command, tmp_path, PYTHONPATH=str(tmp_path / "broken"))
    assert exit_code == 0 and "Traceback" not in output, output
    assert (tmp_path / "runs/run/model.safetensors").read_bytes() == (undisturbed / "model.safetensors").read_bytes()
    for failure in (
        "MLflow at sqlite:///mlflow.db cannot be used (RuntimeError: broken)",
        "TensorBoard's event file cannot be written: TypeError: Descriptors cannot be created directly",
        "the curves could not be drawn: ImportError: libfreetype.so.6",
        "the progress bar cannot be shown: ImportError: broken",
        f"{tmp_path}/runs/run/chosen.json could not be written: [Errno 21]",
        f"{tmp_path}/runs/run/chosen.json cannot be read: ",
    ):
        assert output.count(f"NOTE: {failure}") == 1, output
    assert "test accuracy" in output and "curves   " not in output


def test_resume_repairs_damaged_metrics_but_fails_without_its_model(undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs/run"
    shutil.copytree(undisturbed, run)
    (run / "metrics.csv").write_bytes((run / "metrics.csv").read_bytes()[:-40] + b"\xff\x00")
    (run / "curves.png").unlink()
    (run / "curves.png").mkdir()
    resumed = run_main("--resume", "run", "--epochs", 3, cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert f"NOTE: {run}/metrics.csv is damaged (not a row of numbers: line 3)" in resumed.stderr
    assert "NOTE: the curves could not be drawn: [Errno 21] Is a directory" in resumed.stderr
    assert [row["epoch"] for row in read_metrics(Folder.at(str(run)))] == [1, 2, 3]
    # All epochs are done; what is left is to write the results.
    (run / "metrics.csv").write_bytes(b"")
    (run / "model.safetensors").unlink()
    (run / "model.safetensors").mkdir()
    failed = run_main("--resume", "run", "--epochs", 3, cwd=tmp_path)
    assert failed.returncode == 1, failed.stdout
    assert re.search(r"^error: \S+/runs/run cannot be written: .*Is a directory", failed.stderr, re.MULTILINE)
