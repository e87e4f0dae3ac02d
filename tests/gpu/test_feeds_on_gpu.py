"""Batches on a GPU: equal to those on the CPU, without waiting for the GPU, and wherever the images are kept."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from support.command import PATIENCE, ROOT, SAMPLE

# Trains fast, and needs little memory: a GPU can be smaller than the images.
SMALL_MODEL = """
import torch
from torch import nn


def build_model(recipe: str, num_classes: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, num_classes))
"""
# torch would reserve more than this GPU has.
SMALL_GPU = {
    "PYTORCH_NO_CUDA_MEMORY_CACHING": "1",
    "CUBLAS_WORKSPACE_CONFIG": ":16:8",
    "CUBLASLT_WORKSPACE_SIZE": "128",
}
FakeGpus = Callable[..., dict[str, str]]
FLAGS = ("--num-workers", 0, "--data", "images", "--recipe", "classic", "--epochs", 2, "--batch-size", 40)


@pytest.fixture(scope="module")
def found(fake_gpus: FakeGpus, tiny_data: Path) -> dict[str, Any]:
    """What `support/feeds_on_gpu.py` prints."""
    environment = fake_gpus(1)
    paths = os.pathsep.join([environment["PYTHONPATH"], str(ROOT / "tests"), str(ROOT / "ray_app")])
    command = [sys.executable, str(ROOT / "tests" / "support" / "feeds_on_gpu.py"), str(tiny_data)]
    result = subprocess.run(
        command, env=os.environ | environment | {"PYTHONPATH": paths}, capture_output=True, text=True, timeout=PATIENCE
    )
    assert result.returncode == 0, result.stderr
    printed: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return printed


@pytest.mark.parametrize("name", ["memory", "host", "stream"])
def test_batches_on_a_gpu_equal_those_on_the_cpu(found: dict[str, Any], name: str) -> None:
    assert found[name]["equal"]
    assert found[name]["images_on"] == {"memory": "GPU memory", "host": "host memory", "stream": "storage"}[name]


@pytest.mark.parametrize("name", ["host", "stream"])
def test_batches_are_copied_one_ahead_from_pinned_memory_without_waiting(found: dict[str, Any], name: str) -> None:
    # Images, labels, and indices of two batches. No memory is allocated: this is the third epoch.
    assert found[name]["first"] == {"copy H2D pinned": 2 * 3}
    # All batches of the epoch except for the three that had been copied before the third was asked for.
    assert found[name]["steps"] == 10
    assert found[name]["later"] == {"copy H2D pinned": (10 - 3) * 3}
    # Images and labels of the only batch.
    assert found[name]["evaluation"] == {"copy H2D pinned": 2}


def test_batches_of_images_in_gpu_memory_need_no_copies(found: dict[str, Any]) -> None:
    assert found["memory"]["later"] == found["memory"]["evaluation"] == {}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the program, which trains a small model, and 1,240 images: 3.8 MB decoded."""
    folder = tmp_path_factory.mktemp("small")
    shutil.copytree(ROOT / "ray_app", folder / "ray_app", ignore=shutil.ignore_patterns("sample"))
    (folder / "ray_app" / "vgg_ddp" / "model" / "build.py").write_text(SMALL_MODEL)
    (folder / "images").mkdir()
    for split, count in (("train", 1200), ("test", 40)):
        pq.write_table(
            pq.read_table(SAMPLE / f"{split}.parquet").slice(0, count), folder / "images" / f"{split}.parquet"
        )
    return folder


def train(program: Path, name: str, environment: dict[str, str], *flags: object) -> tuple[Path, str]:
    """The run folder of a run that succeeds, and what it prints on stderr."""
    command = [sys.executable, "ray_app/main.py", *FLAGS, "--run-name", name, *flags]
    result = subprocess.run(
        list(map(str, command)),
        cwd=program,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return program / "runs" / name, result.stderr


@pytest.fixture(scope="module")
def large_gpu(fake_gpus: FakeGpus, program: Path) -> tuple[Path, str]:
    """A profiled run on a GPU with room for all images."""
    return train(program, "large", fake_gpus(1), "--profile")


def test_images_larger_than_the_gpu_train_to_the_same_weights(
    fake_gpus: FakeGpus, program: Path, large_gpu: tuple[Path, str]
) -> None:
    small, error = train(program, "small", fake_gpus(1, memory_mb=3) | SMALL_GPU)
    assert error == (
        "NOTE: the images stay in host memory on 1 of 1 worker(s): they would take more than half of the GPU's free "
        "memory.\n"
    )
    large, error = large_gpu
    assert error == ""
    places = [json.loads((run / "chosen.json").read_text())["images_on"] for run in (small, large)]
    assert places == ["host memory", "GPU memory"]
    assert (small / "model.safetensors").read_bytes() == (large / "model.safetensors").read_bytes()


def test_profile_without_events_of_the_gpu_says_so(large_gpu: tuple[Path, str]) -> None:
    # The fake GPU has no kernels to observe.
    table = (large_gpu[0] / "profile.txt").read_text()
    assert table.startswith("The GPU's times are not available: torch's profiler received no events from the GPU.\n")
    assert "ms of CPU time each; its 10 most expensive operators\n" in table
    assert (large_gpu[0] / "trace.json.gz").exists()
