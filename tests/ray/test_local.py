"""Signals, kills, and resume without a Ray cluster: in one process, and under torchrun."""

import io
import os
import re
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from support.command import (
    PATIENCE,
    PREDICT,
    PREPARE,
    complete_checkpoints,
    count_checkpoints,
    free_port,
    main_command,
    marked_processes,
    run_main,
    run_torchrun,
    started,
    torchrun_command,
    wait_until,
)
from vgg_ddp.run.files import read_metrics
from vgg_ddp.run.storage import Folder

pytestmark = pytest.mark.slow

FLAGS: tuple[object, ...] = ("--recipe", "classic", "--precision", "fp32", "--lr", 0.02, "--epochs", 2)
# A checkpoint after every step: on any machine, the first one is written long before the run ends.
FLAGS += ("--checkpoint-every-seconds", 0.01)

# Python runs this at startup: it records the modules of each rank when the process exits.
WATCH = """
import os, pathlib, sys

def end(exit_code, end=os._exit):
    pathlib.Path("modules-" + os.environ["RANK"]).write_text("\\n".join(sys.modules))
    end(exit_code)

if "RANK" in os.environ:
    os._exit = end
"""


def png_of_color(*color: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (32, 32), color).save(stream, "PNG")
    return stream.getvalue()


def model(cwd: Path) -> bytes:
    return (cwd / "runs/run/model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def job_folder(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an undisturbed, profiled run of one process, as the plain script of a SageMaker job."""
    cwd = tmp_path_factory.mktemp("undisturbed")
    job = {"SM_MODEL_DIR": str(cwd / "model"), "SM_CHANNEL_TRAINING": str(tiny_data), "TRAINING_JOB_NAME": "run"}
    # Hyperparameters reach a script like this: `--profile true`.
    result = run_main("--num_workers", 0, "--profile", "true", *FLAGS, cwd=cwd, **job)
    assert result.returncode == 0 and result.stderr == "", result.stderr
    assert "its 10 most expensive operators" in result.stdout
    return cwd


@pytest.fixture(scope="module")
def undisturbed(job_folder: Path) -> bytes:
    """The model of an undisturbed run."""
    return model(job_folder)


@pytest.fixture(scope="module")
def two_undisturbed(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an undisturbed run of two processes that recorded their modules."""
    cwd = tmp_path_factory.mktemp("two-undisturbed")
    (cwd / "sitecustomize.py").write_text(WATCH)
    result = run_torchrun(2, "--data", tiny_data, "--run-name", "run", *FLAGS, cwd=cwd, PYTHONPATH=str(cwd))
    assert result.returncode == 0, result.stderr
    return cwd


@pytest.fixture(scope="module")
def undisturbed_by_two(two_undisturbed: Path) -> bytes:
    """The model of an undisturbed run of two processes."""
    return model(two_undisturbed)


def test_plain_script_of_a_job_leaves_its_model(job_folder: Path) -> None:
    assert (job_folder / "model" / "model.safetensors").read_bytes() == model(job_folder)


def test_process_interrupted_three_times_resumes_to_the_same_weights(
    undisturbed: bytes, tiny_data: Path, tmp_path: Path
) -> None:
    flags: tuple[object, ...] = ("--num-workers", 0, "--data", tiny_data, "--run-name", "run", *FLAGS)
    run = tmp_path / "runs/run"
    found: set[str] = set()
    for signal_number, exit_code in ((signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)):
        with started(tmp_path, main_command(*flags)) as process:
            # This process has written one, too.
            wait_until(lambda seen=found: bool(complete_checkpoints(run) - seen))
            process.send_signal(signal_number)
            output, _ = process.communicate(timeout=30)
        assert process.returncode == exit_code, output
        assert "--resume run" in output
        assert ("Resumed at step" in output) == bool(found)
        found = complete_checkpoints(run)
        flags = ("--resume", "run")
    resumed = run_main("--resume", "run", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert "Resumed at step" in resumed.stdout
    assert model(tmp_path) == undisturbed


def test_run_continues_after_its_output_pipe_is_closed(undisturbed: bytes, tiny_data: Path, tmp_path: Path) -> None:
    command = main_command("--num-workers", 0, "--data", tiny_data, "--run-name", "run", *FLAGS)
    with started(tmp_path, command) as process:
        assert process.stdout and process.stdout.readline().startswith("Data:")
        process.stdout.close()
        assert process.wait(PATIENCE) == 0
    assert model(tmp_path) == undisturbed


def test_torchrun_processes_do_not_import_slow_modules(two_undisturbed: Path) -> None:
    for rank in range(2):
        modules = set((two_undisturbed / f"modules-{rank}").read_text().splitlines())
        assert "torch.nn.parallel.distributed" in modules
        assert not modules & {"torch._dynamo", "torchvision"}


def test_processes_with_different_images_are_rejected(tiny_data: Path, tmp_path: Path) -> None:
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    with ExitStack() as stack:
        ranks = []
        for rank, data in enumerate((tiny_data, "sample")):
            of_rank = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
            command = main_command("--num-workers", 0, "--data", data, *FLAGS)
            ranks.append(stack.enter_context(started(tmp_path, command, **address, **of_rank)))
        output, _ = ranks[0].communicate(timeout=PATIENCE)
        assert ranks[1].wait(PATIENCE) == ranks[0].returncode == 2
    found = f"{tiny_data}, 240 training images; bundled CIFAR-10 sample, 5,000 training images"
    assert f"error: the workers found different images ({found}): use another --data." in output


def test_terminated_torchrun_saves_and_resumes_to_the_same_weights(
    undisturbed_by_two: bytes, tiny_data: Path, tmp_path: Path
) -> None:
    command = torchrun_command(2, "--data", tiny_data, "--run-name", "run", *FLAGS, "--checkpoint-every-seconds", 300)
    with started(tmp_path, command) as process:
        # The signal triggers the only checkpoint.
        wait_until(lambda: (tmp_path / "runs/run/startup.json").exists())
        process.terminate()
        output, _ = process.communicate(timeout=30)
    assert process.returncode != 0
    assert "Stopped after step" in output
    assert "torchrun --nproc-per-node=2 ray_app/main.py --resume run" in output
    assert count_checkpoints(tmp_path / "runs/run") == 1
    resumed = run_torchrun(2, "--resume", "run", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert model(tmp_path) == undisturbed_by_two


def test_fast_recipe_resumes_to_the_same_weights_and_leaves_a_plain_model(tiny_data: Path, tmp_path: Path) -> None:
    flags = ("--data", tiny_data, *FLAGS, "--recipe", "fast")
    stopped = torchrun_command(2, *flags, "--run-name", "run", "--checkpoint-every-seconds", 300)
    with started(tmp_path, ["nohup", *stopped]) as process:
        wait_until(lambda: (tmp_path / "runs/run/startup.json").exists())
        # A terminal that closes sends this to all of its processes. torchrun handles it even under nohup.
        os.killpg(process.pid, signal.SIGHUP)
        output, _ = process.communicate(timeout=30)
    assert "Stopped after step" in output
    for arguments in (("--resume", "run"), (*flags, "--run-name", "undisturbed")):
        result = run_torchrun(2, *arguments, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
    assert model(tmp_path) == (tmp_path / "runs/undisturbed/model.safetensors").read_bytes()
    predicted = subprocess.run(
        [sys.executable, str(PREDICT), "runs/run", "--data", str(tiny_data)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    last_row = read_metrics(Folder.at(str(tmp_path / "runs/run")))[-1]
    assert f"accuracy {last_row['test_accuracy']:.2%}" in predicted.stdout, predicted.stderr


def test_torchrun_replaces_a_killed_and_a_frozen_process_and_the_weights_are_the_same(
    undisturbed_by_two: bytes, tiny_data: Path, tmp_path: Path
) -> None:
    flags = ("--data", tiny_data, "--run-name", "run", "--collective-timeout-seconds", 5, *FLAGS)
    run, log = tmp_path / "runs/run", tmp_path / "log"

    def disturb(signal_number: int) -> None:
        ranks = [pid for pid, line in marked_processes(tmp_path.name).items() if "torchrun" not in line]
        os.kill(ranks[-1], signal_number)

    command = torchrun_command(2, *flags, restarts=2)
    with started(tmp_path, command, log, TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1") as process:
        wait_until(lambda: count_checkpoints(run) >= 1)
        disturb(signal.SIGKILL)
        wait_until(lambda: "Resumed at step" in log.read_text() or process.poll() is not None)
        assert " hung: " not in log.read_text()
        disturb(signal.SIGSTOP)
        assert process.wait(PATIENCE) == 0, log.read_text()
    assert re.search(r"rank \d hung: no answer within 5 s", log.read_text()), log.read_text()
    assert log.read_text().count("Resumed at step") == 2
    assert model(tmp_path) == undisturbed_by_two


def test_run_starts_from_the_weights_of_an_earlier_run(tiny_data: Path, undisturbed: bytes, tmp_path: Path) -> None:
    (tmp_path / "earlier.safetensors").write_bytes(undisturbed)
    flags = ("--num-workers", 0, "--data", tiny_data, "--init-from", "earlier.safetensors", "--batch-size", 24)
    flags += ("--recipe", "classic")
    # Steps too small to change any weight; batch normalization's averages still change.
    result = run_main(*flags, "--lr", 1e-9, "--epochs", 1, "--precision", "fp32", "--run-name", "second", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    state = torch.load(next((tmp_path / "runs/second").glob("checkpoint_*/state.pt")), weights_only=True)
    with safe_open(tmp_path / "earlier.safetensors", framework="pt") as file:
        for name, parameter in state["replica"]["parameters"].items():
            torch.testing.assert_close(parameter, file.get_tensor(name), rtol=0, atol=1e-6)
    # A resume does not need those weights again, and must not change the precision.
    (tmp_path / "earlier.safetensors").unlink()
    resumed = run_main("--resume", "second", "--epochs", 2, cwd=tmp_path)
    assert resumed.returncode == 0 and "Resumed at step" in resumed.stdout, resumed.stderr
    other = run_main("--resume", "second", "--epochs", 3, "--precision", "bf16", cwd=tmp_path)
    assert other.returncode == 2, other.stdout
    assert other.stderr == "error: --precision bf16: this run uses fp32; omit the flag to resume.\n"
    gone = run_main("--num-workers", 0, "--data", tiny_data, "--init-from", "gone", cwd=tmp_path)
    assert gone.returncode == 2 and gone.stderr.count("\n") == 1 and "gone: expected a folder" in gone.stderr


def test_first_epochs_use_half_size_images(tmp_path: Path) -> None:
    # Single-color images are the same at any size, except for edge effects in the model.
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        images = [png_of_color(*color) for color in generator.integers(0, 256, (60, 3)).tolist()]
        pq.write_table(pa.table({"img": images, "label": np.arange(60) % 3}), tmp_path / f"{split}.parquet")
    sizes = {"small": (), "growing": ("--image-size", 64, "--half-size-epochs", 1), "large": ("--image-size", 64)}
    losses = {}
    for name, flags in sizes.items():
        flags += ("--num-workers", 0, "--data", tmp_path, "--run-name", name, *FLAGS, "--batch-size", 20)
        result = run_main(*flags, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        losses[name] = [row["test_loss"] for row in read_metrics(Folder.at(str(tmp_path / "runs" / name)))]
    small, growing, large = losses.values()
    assert growing[0] == pytest.approx(small[0], rel=1e-3)
    assert growing[0] != pytest.approx(large[0], rel=1e-3)
    assert growing[1] != pytest.approx(small[1], rel=1e-3)


def test_thousand_classes_from_image_folder_to_predictions(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for index in range(1000):
        folder = tmp_path / "photos" / f"класс {index}"
        folder.mkdir(parents=True)
        for number in range(2):
            Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    prepared = subprocess.run(
        [sys.executable, str(PREPARE), "photos", "data", "--test-fraction", "0.5"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert "1,000 training and 1,000 test files, 1000 classes" in prepared.stdout, prepared.stdout + prepared.stderr
    trained = run_main("--num-workers", 0, "--data", "data", "--epochs", 1, "--run-name", "run", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert "1,000 training and 1,000 test images, 1000 classes" in trained.stdout
    command = [sys.executable, str(PREDICT), "runs/run", "photos/класс 7/0.png", "--top", "1000"]
    predicted = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE)
    assert set(re.findall(r"класс \d+", predicted.stdout)) == {f"класс {index}" for index in range(1000)}
