"""GPUs are used by default, and only if torch can use them on every worker; otherwise, one line says why not."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from support.command import CLUSTER_SETTINGS, MAIN, PATIENCE, free_port, run_main

FakeGpus = Callable[..., dict[str, str]]
TOO_OLD = {"old_driver": 1}, "the NVIDIA driver 470.82.01 is too old for torch ", "update the driver"
# What happens in a spare process: Ray chooses its GPU when it becomes a worker.
SPARE = """
import os
from vgg_ddp.compat.ray_spares import load
load()
os.environ["CUDA_VISIBLE_DEVICES"] = "1"
import torch
print(torch.cuda.device_count(), torch.cuda.get_device_name(0))
"""
NO_CODE = {"capability": "7.0"}, " has no code for GPU 0, ", "install a torch that supports it"


@pytest.fixture
def flags(tiny_data: Path, tmp_path: Path) -> list[object]:
    """Flags of two quick steps."""
    flags = ["--data", tiny_data, "--epochs", 1, "--batch-size", 120, "--recipe", "classic", "--precision", "fp32"]
    return [*flags, "--run-name", "run", "--storage-path", tmp_path]


def chosen_workers(storage: Path) -> tuple[str, int]:
    """The device and the number of workers of the run."""
    chosen = json.loads((storage / "run" / "chosen.json").read_text())
    return chosen["device"], chosen["world_size"]


@pytest.mark.parametrize(
    ("workers", "fault"), [((), TOO_OLD), (("--num-workers", 0), TOO_OLD), (("--num-workers", 0), NO_CODE)]
)
def test_gpus_that_torch_cannot_use_are_refused_in_one_line(
    fake_gpus: FakeGpus,
    flags: list[object],
    tmp_path: Path,
    workers: tuple[object, ...],
    fault: tuple[dict[str, object], str, str],
) -> None:
    settings, reason, remedy = fault
    result = run_main(*flags, *workers, "--device", "gpu", cwd=tmp_path, **fake_gpus(2, **settings))
    assert result.returncode == 2, result.stdout + result.stderr
    assert result.stderr.startswith("error: --device gpu: GPUs cannot be used on ")
    assert result.stderr.endswith(f"; {remedy}, or use --device cpu.\n")
    assert reason in result.stderr
    assert result.stderr.count("\n") == 1


def test_run_falls_back_to_the_cpu_and_says_why(fake_gpus: FakeGpus, flags: list[object], tmp_path: Path) -> None:
    settings, reason, remedy = NO_CODE
    result = run_main(*flags, "--num-workers", 0, cwd=tmp_path, **fake_gpus(2, **settings))
    assert result.returncode == 0, result.stdout + result.stderr
    (note,) = [line for line in result.stdout.splitlines() if "NOTE" in line]
    assert note.startswith("NOTE: GPUs cannot be used on ") and reason in note
    assert note.endswith(f"; {remedy}. Training on CPUs.")
    assert chosen_workers(tmp_path) == ("cpu", 1)


def test_spare_process_does_not_look_at_gpus_before_it_gets_one(fake_gpus: FakeGpus) -> None:
    environment = os.environ | fake_gpus(2, names="first,second")
    command = [sys.executable, "-c", SPARE]
    # The folder from which Python imports the package.
    result = subprocess.run(command, cwd=MAIN.parent, env=environment, capture_output=True, text=True, check=False)
    assert result.stdout == "1 second\n", result.stderr


@pytest.mark.e2e
def test_workers_check_the_gpus_of_an_existing_cluster(flags: list[object], tmp_path: Path) -> None:
    # As on a cluster whose nodes have GPUs, but not the driver for them.
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 2})
    try:
        runs = {
            device: run_main(*flags, "--device", device, "--address", cluster.address, cwd=tmp_path, **CLUSTER_SETTINGS)
            for device in ("gpu", "auto")
        }
    finally:
        cluster.shutdown()
    assert {device: run.returncode for device, run in runs.items()} == {"gpu": 2, "auto": 0}, runs
    for run in runs.values():
        assert "Workers:   2 on GPU, starting" in run.stdout
        assert " failed:" not in run.stderr
    (error,) = [line for line in runs["gpu"].stderr.splitlines() if line.startswith("error: ")]
    assert error.startswith("error: --device gpu: torch ") and " sees no GPU on " in error
    assert runs["auto"].stdout.count("NOTE: torch ") == runs["auto"].stdout.count(" sees no GPU on ") == 1
    assert chosen_workers(tmp_path) == ("cpu", 2)


@pytest.mark.parametrize(("device", "own_store"), [("auto", "1"), ("gpu", "")])
def test_torchruns_processes_agree_on_the_device(
    fake_gpus: FakeGpus, flags: list[object], tmp_path: Path, device: str, own_store: str
) -> None:
    torchrun = Path(sys.executable).with_name("torchrun")
    options = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", "--local-addr=127.0.0.1"]
    options += [f"--rdzv-endpoint=127.0.0.1:{free_port()}"]
    command = [str(part) for part in (torchrun, *options, MAIN, *flags, "--device", device)]

    def run_machine(gpus: int) -> subprocess.CompletedProcess[str]:
        environment = os.environ | fake_gpus(gpus) | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": own_store}
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
        )

    with ThreadPoolExecutor() as pool:
        results = list(pool.map(run_machine, (1, 0)))
    printed = "".join(result.stdout + result.stderr for result in results)
    if device == "auto":
        assert [result.returncode for result in results] == [0, 0], printed
        assert printed.count("NOTE: torch ") == printed.count(" sees no GPU on ") == 1
        assert chosen_workers(tmp_path) == ("cpu", 2)
    else:
        errors = [line for result in results for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 2 and len(set(errors)) == 1, printed
        assert errors[0].startswith("error: --device gpu: torch ")
        assert printed.count("exitcode  : 2") == 2
