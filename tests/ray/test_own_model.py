"""The program with another model, exchanged as the README says."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

from command import ROOT

pytestmark = pytest.mark.slow


def test_model_of_the_readme_trains_and_predicts(tiny_data: Path, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "ray_app", tmp_path / "ray_app")
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    source = tmp_path / "ray_app/vgg_ddp/model.py"
    exchanged, count = re.subn(r"class VGG11.*?\n\n(?=    @torch)", f"{example}\n", source.read_text(), flags=re.DOTALL)
    assert count == 1
    source.write_text(exchanged)
    train = ("main.py", "--num-workers", "0", "--recipe", "classic", "--epochs", "1", "--run-name", "run")
    for script, *flags in (train, ("predict.py", "runs/run")):
        command = [sys.executable, f"ray_app/{script}", *flags, "--data", str(tiny_data)]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert result.returncode == 0, result.stdout + result.stderr
    assert "of 60 test images" in result.stdout
    with safe_open(tmp_path / "runs/run/model.safetensors", "pt") as model:
        assert model.get_slice("features.7.1.conv2.weight").get_shape() == [512, 512, 3, 3]
