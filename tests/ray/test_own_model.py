"""The program with the custom architecture of docs/extending.md: trained, resumed, evaluated, and served."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from safetensors import safe_open

from sagemaker_entry.container.outputs import copy_code
from support.command import PATIENCE, ROOT

pytestmark = pytest.mark.slow
PAGE = (ROOT / "docs" / "extending.md").read_text()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the program that trains the page's ResNet-18."""
    folder = tmp_path_factory.mktemp("own")
    shutil.copytree(ROOT / "ray_app", folder / "ray_app", ignore=shutil.ignore_patterns("sample"))
    (change,) = re.findall(r"```diff\n(.*?)```", PAGE, re.DOTALL)
    subprocess.run(["git", "apply"], cwd=folder, input=change, text=True, check=True, timeout=30)
    return folder


def run(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE)


def succeed(folder: Path, *arguments: object) -> str:
    result = run(folder, *arguments)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def trained(folder: Path, tiny_data: Path) -> Path:
    """The folder of a run that was trained for one epoch and resumed for another."""
    flags = ("--num-workers", 0, "--data", tiny_data, "--batch-size", 120)
    succeed(folder, "ray_app/main.py", *flags, "--epochs", 1, "--run-name", "run")
    assert "Resumed at step 2" in succeed(folder, "ray_app/main.py", *flags, "--epochs", 2, "--resume", "run")
    return folder / "runs" / "run"


def test_documented_model_is_trained_resumed_and_evaluated(tiny_data: Path, folder: Path, trained: Path) -> None:
    assert "of 60 test images" in succeed(folder, "ray_app/predict.py", trained, "--data", tiny_data)
    with safe_open(trained / "model.safetensors", "pt") as model:
        assert model.get_slice("layer4.1.conv2.weight").get_shape() == [512, 512, 3, 3]
        assert json.loads(model.metadata()["vgg_ddp"])["architecture"] == "ResNet"


def test_documented_model_is_served_by_the_documented_program(folder: Path, trained: Path, tmp_path: Path) -> None:
    (program,) = re.findall(r"```python\n(import sys.*?)```", PAGE, re.DOTALL)
    # Like a model archive, which contains only the models of the training code.
    copy_code(tmp_path)
    shutil.copytree(folder / "ray_app" / "vgg_ddp" / "model", tmp_path / "vgg_ddp" / "model", dirs_exist_ok=True)
    Image.new("RGB", (40, 30), "green").save(tmp_path / "image.png")
    program = program.replace("runs/resnet", str(trained)).replace("my-cat.png", "image.png")
    answer = json.loads(succeed(tmp_path, "-c", program))
    assert len(answer["predictions"][0]["probabilities"]) == 10


def test_unsupported_images_end_the_run_with_one_line(folder: Path, tiny_data: Path) -> None:
    # The classic recipe allows one image per worker, but the last batch normalization of ResNet-18 does not.
    flags = ("--recipe", "classic", "--num-workers", 0, "--batch-size", 1, "--data", tiny_data)
    result = run(folder, "ray_app/main.py", *flags)
    assert result.returncode == 2, result.stdout + result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "build_model's ResNet cannot train on 1 image(s) of 32x32 pixels per worker: Expected" in line
