"""Whole runs on the fake CUDA: one process, torchrun, and Ray, over NCCL."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from fake_cuda import counts
from support.command import (
    PATIENCE,
    count_checkpoints,
    main_command,
    marked_processes,
    run_main,
    run_torchrun,
    started,
    wait_until,
)
from vgg_ddp.run.files import read_metrics
from vgg_ddp.run.storage import Folder

pytestmark = pytest.mark.slow

FakeGpus = Callable[..., dict[str, str]]

# Python runs this at startup: it writes a digest of each rank's weights when the process exits.
WATCH = """
import os, pathlib, runpy

runpy.run_path(os.environ["FAKE_STARTUP"] + "/sitecustomize.py")

if "RANK" in os.environ:
    import hashlib
    import torch

    # The module that was called last: the model, from outside to inside.
    last = [None]
    torch.nn.modules.module.register_module_forward_hook(lambda module, *_: last.__setitem__(0, module))

    def end(exit_code, end=os._exit):
        digest = hashlib.sha256()
        for name, parameter in last[0].named_parameters():
            digest.update(parameter.detach().cpu().numpy().tobytes())
        pathlib.Path("weights-" + os.environ["RANK"]).write_text(digest.hexdigest())
        end(exit_code)

    os._exit = end
"""
FLAGS: tuple[object, ...] = ("--recipe", "classic", "--batch-size", 24, "--precision", "fp32", "--lr", 0.02)
# A checkpoint at every opportunity: the first one is written long before the run ends.
FLAGS += ("--epochs", 2, "--checkpoint-every-seconds", 0.01, "--run-name", "run")
# The fake GPU computes as the CPU does without its own convolutions.
ON_CPU = ("--device", "cpu", "--no-fast-convolutions")


def model(cwd: Path) -> bytes:
    return (cwd / "runs/run/model.safetensors").read_bytes()


def losses(cwd: Path) -> list[float]:
    return [row[name] for row in read_metrics(Folder.at(str(cwd / "runs/run"))) for name in ("loss", "test_loss")]


def require_emulated(folder: Path, processes: int) -> counts.Counts:
    """Check that this many processes trained on a GPU, that no kernel ran without being computed, and none waits."""
    counted = [found for found in counts.read(folder).values() if found.launches > 1000]
    assert len(counted) == processes, counts.read(folder)
    total = counts.total(folder)
    assert not total.starting_with("not emulated", "illegal", "hung"), total
    return total


@pytest.fixture(scope="module")
def one_undisturbed(tiny_data: Path, fake_gpus: FakeGpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an undisturbed run of one process on a GPU."""
    cwd, counted = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("counts")
    flags = ("--num-workers", 0, "--data", tiny_data, *FLAGS)
    result = run_main(*flags, "--device", "gpu", cwd=cwd, **fake_gpus(1, counts=counted))
    assert result.returncode == 0 and result.stderr == "", result.stderr
    assert "1 GPU worker in fp32" in result.stdout
    require_emulated(counted, 1)
    return cwd


@pytest.fixture(scope="module")
def two_undisturbed(tiny_data: Path, fake_gpus: FakeGpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an undisturbed run of two processes under torchrun, on two GPUs."""
    cwd, counted = tmp_path_factory.mktemp("two"), tmp_path_factory.mktemp("counts")
    environment = fake_gpus(2, counts=counted)
    result = run_torchrun(2, "--data", tiny_data, *FLAGS, "--device", "gpu", cwd=cwd, **environment)
    assert result.returncode == 0, result.stderr
    assert require_emulated(counted, 2)["communicators"] == 2
    return cwd


def test_run_on_a_gpu_has_the_losses_and_weights_of_the_cpu(
    one_undisturbed: Path, tiny_data: Path, tmp_path: Path
) -> None:
    result = run_main("--num-workers", 0, "--data", tiny_data, *FLAGS, *ON_CPU, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert losses(one_undisturbed) == pytest.approx(losses(tmp_path), rel=1e-6)
    assert model(one_undisturbed) == model(tmp_path)


def test_terminated_run_on_a_gpu_resumes_to_the_same_weights(
    one_undisturbed: Path, tiny_data: Path, fake_gpus: FakeGpus, tmp_path: Path
) -> None:
    command = main_command("--num-workers", 0, "--data", tiny_data, *FLAGS, "--device", "gpu")
    with started(tmp_path, command, **fake_gpus(1)) as process:
        wait_until(lambda: count_checkpoints(tmp_path / "runs/run") >= 1)
        process.terminate()
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 143, output
    resumed = run_main("--resume", "run", cwd=tmp_path, **fake_gpus(1))
    assert resumed.returncode == 0, resumed.stderr
    assert "Resumed at step" in resumed.stdout
    assert model(tmp_path) == model(one_undisturbed)


def test_ray_uses_all_gpus_by_default_and_has_the_weights_of_torchrun_although_a_worker_was_killed(
    two_undisturbed: Path, tiny_data: Path, fake_gpus: FakeGpus, tmp_path: Path
) -> None:
    counted, log = tmp_path / "counts", tmp_path / "log"
    counted.mkdir()
    flags = ("--min-workers", 1, "--data", tiny_data, *FLAGS)
    with started(tmp_path, main_command(*flags), log, **fake_gpus(2, counts=counted)) as process:
        wait_until(lambda: count_checkpoints(tmp_path / "runs/run") >= 1)
        processes = marked_processes(tmp_path.name).items()
        workers = [pid for pid, line in processes if line.startswith("ray::RayTrainWorker")]
        os.kill(workers[1], signal.SIGKILL)
        assert process.wait(PATIENCE) == 0, log.read_text()
    output = log.read_text()
    assert "Workers:   2 on GPU, starting" in output and "2 GPU workers in fp32" in output and "NOTE" not in output
    assert "restart 1 of at most 3" in output and "Resumed at step" in output, output
    # Count only the processes of the restart.
    for pid in workers:
        (counted / str(pid)).unlink()
    require_emulated(counted, 2)
    # A resumed run keeps the number.
    assert json.loads((tmp_path / "runs/run/config.json").read_text())["num_workers"] == 2
    assert model(tmp_path) == model(two_undisturbed)


def test_gpus_of_different_kinds_share_the_work_of_muon_and_end_with_the_same_weights(
    tiny_data: Path, fake_gpus: FakeGpus, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(WATCH)
    counted = tmp_path / "counts"
    counted.mkdir()
    environment = fake_gpus(2, counts=counted, names="NVIDIA H100,NVIDIA L4")
    environment |= {"PYTHONPATH": str(tmp_path), "FAKE_STARTUP": environment["PYTHONPATH"].split(os.pathsep)[0]}
    flags = ("--data", tiny_data, *FLAGS, "--recipe", "fast", "--epochs", 1, "--batch-size", 80, "--device", "gpu")
    result = run_torchrun(2, *flags, cwd=tmp_path, **environment)
    assert result.returncode == 0, result.stderr
    assert "2 GPU workers in fp32 with TF32 products, global" in result.stdout
    # On both ranks, in each of three steps, the rank that has computed the update of one of eight layers sends it.
    assert require_emulated(counted, 2)["collective broadcast"] >= 2 * 3 * 8
    weights = [(tmp_path / f"weights-{rank}").read_text() for rank in range(2)]
    assert weights[0] == weights[1] != ""
