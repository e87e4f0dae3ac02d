"""Steps on a GPU: what they launch, and that graphs compute what eager steps do."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.command import PATIENCE, ROOT

pytestmark = pytest.mark.slow

# Launches per step, at most. Each launch costs about 5 us of the host's time, and in a graph about 1 us
# of the GPU's.
LAUNCHES = {"fast": 397, "classic": 252}
# Runs a module with its arguments.
WITHOUT_RAY = """
import runpy, sys
sys.modules["ray"] = None
del sys.argv[0]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
RunOnGpu = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run_on_gpu(fake_gpus: Callable[..., dict[str, str]]) -> RunOnGpu:
    """Run a module on one fake GPU, where Ray cannot be imported."""

    def run(*arguments: object, emulate: int = 1) -> subprocess.CompletedProcess[str]:
        environment = os.environ | fake_gpus(1, emulate=emulate)
        folders = [ROOT / "tests", ROOT / "ray_app", ROOT, environment["PYTHONPATH"]]
        result = subprocess.run(
            [sys.executable, "-c", WITHOUT_RAY, *map(str, arguments)],
            env=environment | {"PYTHONPATH": os.pathsep.join(map(str, folders))},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result

    return run


def printed(result: subprocess.CompletedProcess[str]) -> Any:
    return json.loads(result.stdout.splitlines()[-1])


def test_step_never_waits_and_launches_few_kernels(run_on_gpu: RunOnGpu) -> None:
    counts = printed(run_on_gpu("support.gpu_steps", "count", emulate=0))
    for recipe, launches in LAUNCHES.items():
        assert counts[f"{recipe}, eager"].pop("launches") <= launches
        assert counts[f"{recipe}, eager"] == {"synchronizations": 0, "illegal": 0}
        assert counts[f"{recipe}, graphed"] == {"launches": 1, "synchronizations": 0, "illegal": 0}


def test_hundred_graphed_steps_give_the_weights_of_eager_steps(run_on_gpu: RunOnGpu) -> None:
    found = printed(run_on_gpu("support.gpu_steps", "compare"))
    assert found["fast in bf16: different"] == found["classic at two sizes: different"] == 0
    assert min(found["fast in bf16: moved"], found["classic at two sizes: moved"]) > 0.01


def test_model_that_cannot_be_captured_trains_without_graphs(run_on_gpu: RunOnGpu) -> None:
    result = run_on_gpu("support.gpu_steps", "fail")
    assert "NOTE: the step cannot be captured in a CUDA graph, and runs without: " in result.stderr
    assert printed(result)["images"] == 80


def test_benchmark_measures_every_item_without_ray(run_on_gpu: RunOnGpu, tiny_data: Path, tmp_path: Path) -> None:
    flags = ("--batch-size", 24, "--steps", 2, "--rounds", 1, "--epochs", 2, "--seeds", 0, "--compared-steps", 8)
    written = tmp_path / "gpu.json"
    flags += ("--data", tiny_data, "--without-compiled", "--json", written)
    result = run_on_gpu("benchmarks.speed.gpu", *flags, emulate=0)
    items = json.loads(written.read_text())["items"]
    assert len(items) == 18 and not [item for item in items.values() if "error" in item], result.stdout
    lines = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    assert [line["item"] for line in lines[:-1]] == list(items)
