"""Faults that a run survives, and errors that it reports."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from ray.train import WorkerGroupError

from support.command import (
    PATIENCE,
    count_checkpoints,
    main_command,
    marked_processes,
    own_output,
    run_main,
    run_torchrun,
    started,
    wait_until,
)
from vgg_ddp.worker.failures import first_cause

pytestmark = pytest.mark.slow

GIB, CHUNK = 2**30, 2**26
FLAGS: tuple[object, ...] = ("--recipe", "classic", "--batch-size", 24, "--precision", "fp32", "--lr", 0.02)
# A checkpoint after every step: on any machine, the first one is written long before the run ends.
FLAGS += ("--epochs", 2, "--checkpoint-every-seconds", 0.01)


@pytest.fixture(scope="module")
def undisturbed(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The model of an undisturbed run of two processes; under torchrun, which starts faster than Ray."""
    cwd = tmp_path_factory.mktemp("undisturbed")
    result = run_torchrun(2, "--data", tiny_data, "--run-name", "run", *FLAGS, cwd=cwd)
    assert result.returncode == 0, result.stderr
    return (cwd / "runs/run/model.safetensors").read_bytes()


def processes(mark: str, name: str) -> list[int]:
    return [pid for pid, command in marked_processes(mark).items() if command.startswith(name)]


def workers(mark: str) -> list[int]:
    return processes(mark, "ray::RayTrainWorker")


def test_killed_and_frozen_workers_are_replaced_and_the_weights_are_those_of_an_undisturbed_run(
    undisturbed: bytes, tiny_data: Path, tmp_path: Path
) -> None:
    flags = ("--num-workers", 2, "--data", tiny_data, "--run-name", "run", "--collective-timeout-seconds", 10, *FLAGS)
    log = tmp_path / "log"
    with started(tmp_path, main_command(*flags), log) as process:
        wait_until(lambda: count_checkpoints(tmp_path / "runs/run") >= 1)
        os.kill(workers(tmp_path.name)[1], signal.SIGKILL)
        wait_until(lambda: "Resumed at step" in log.read_text())
        second = set(workers(tmp_path.name))
        os.kill(max(second), signal.SIGSTOP)
        frozen = time.time()
        third: dict[int, float] = {}

        def run_ends() -> bool:
            for pid in set(workers(tmp_path.name)) - second:
                with suppress(psutil.NoSuchProcess):
                    third[pid] = psutil.Process(pid).create_time()
            return process.poll() is not None

        wait_until(run_ends)
        assert process.returncode == 0, log.read_text()
        # The other worker waited for 20 seconds. After 10, it had started a spare process, which has replaced a worker.
        assert min(third.values()) < frozen + 19, log.read_text()
    output = log.read_text()
    assert output.index("restart 1 of at most 3") < output.index("restart 2 of at most 3")
    assert re.search(r"rank \d hung: no answer within 10 s", output), output
    assert (tmp_path / "runs/run/model.safetensors").read_bytes() == undisturbed


def test_killed_controller_and_killed_driver_leave_no_processes_and_the_run_resumes_to_the_same_weights(
    undisturbed: bytes, tiny_data: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    command = main_command("--num-workers", 2, "--data", tiny_data, "--run-name", "run", *FLAGS)
    with started(tmp_path, command, log) as process:
        wait_until(lambda: count_checkpoints(tmp_path / "runs/run") >= 1)
        (controller,) = processes(tmp_path.name, "ray::TrainController")
        os.kill(controller, signal.SIGKILL)
        assert process.wait(60) == 1, log.read_text()
        wait_until(lambda: not marked_processes(tmp_path.name), seconds=90)
    assert "error: the process of Ray Train's controller died (ActorDiedError: " in log.read_text()
    assert "Traceback" not in log.read_text()
    assert "--resume run" in log.read_text().splitlines()[-1]
    with started(tmp_path, main_command("--resume", "run"), log) as process:
        wait_until(lambda: "Resumed at step" in log.read_text())
        os.kill(process.pid, signal.SIGKILL)
        wait_until(lambda: not marked_processes(tmp_path.name), seconds=90)
    # Under torchrun, which starts faster than Ray.
    result = run_torchrun(2, "--resume", "run", "--num-workers", 0, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "Resumed at step" in result.stdout
    assert (tmp_path / "runs/run/model.safetensors").read_bytes() == undisturbed
    assert count_checkpoints(tmp_path / "runs/run") == len(list((tmp_path / "runs/run").glob("checkpoint_0*"))) == 2


def test_first_real_exception_of_a_rank_reaches_the_user(
    train: Callable[..., object], capfd: pytest.CaptureFixture[str]
) -> None:
    def fail() -> bool:
        raise ZeroDivisionError("a fault in the code")

    with pytest.raises(WorkerGroupError) as failure:
        train(2, epochs=1, max_failures=1, stop_requested=fail)
    rank, cause = first_cause(failure.value.worker_failures)
    assert rank == 0
    assert "a fault in the code" in str(cause)
    wait_until(lambda: bool(re.search("restart 1 of at most 1", "".join(capfd.readouterr()))))


def test_hung_rank_is_named(train: Callable[..., object]) -> None:
    def hang() -> bool:
        time.sleep(1000)
        return False

    with pytest.raises(WorkerGroupError) as failure:
        train(2, epochs=1, max_failures=0, collective_timeout_seconds=5, stop_requested=hang)
    _, cause = first_cause(failure.value.worker_failures)
    assert "rank 0 hung: no answer within 5 s" in str(cause)


@pytest.mark.alone
def test_worker_killed_for_memory_is_replaced(undisturbed: bytes, tiny_data: Path, tmp_path: Path) -> None:
    memory = psutil.virtual_memory()
    if memory.available < 10 * GIB:
        pytest.skip("needs 10 GiB of free memory: two workers, and enough to exhaust")
    threshold = 1 - (memory.available - 8 * GIB) / memory.total
    # Ray checks every four seconds: enough time to free the memory before Ray also kills the controller.
    environment = {"RAY_memory_usage_threshold": f"{threshold:.3f}", "RAY_memory_monitor_refresh_ms": "4000"}
    flags = ("--num-workers", 2, "--data", tiny_data, "--run-name", "run", *FLAGS)
    with started(tmp_path, main_command(*flags), **environment) as process:
        wait_until(lambda: count_checkpoints(tmp_path / "runs/run") >= 1)
        before = set(workers(tmp_path.name))
        # The other workers wait for this one, so the run cannot end before Ray checks.
        frozen = psutil.Process(min(before))
        frozen.suspend()
        # Simulates another program that takes memory until Ray kills a worker. Ray kills as many workers as bring the
        # usage below the threshold, which changes all the time: stay just above it.
        ballast: list[bytearray] = []

        def worker_is_killed() -> bool:
            if not before <= set(workers(tmp_path.name)):
                return True
            memory = psutil.virtual_memory()
            missing = int(memory.available - (1 - threshold) * memory.total) + 2 * CHUNK
            for _ in range(missing // CHUNK):
                ballast.append(bytearray(CHUNK))
                ballast[-1][::4096] = b"\1" * len(ballast[-1][::4096])
            if missing < 0:
                del ballast[missing // CHUNK :]
            return False

        wait_until(worker_is_killed)
        ballast.clear()
        with suppress(psutil.NoSuchProcess):
            frozen.resume()
        output, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, output
    assert re.search(r"Ray killed \d+ worker", output), output
    assert "restart 1 of at most 3" in output
    assert (tmp_path / "runs/run/model.safetensors").read_bytes() == undisturbed


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system in memory with space for two checkpoints (74 MB each), but not three."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", disk], capture_output=True, text=True)
    if mount.returncode:
        pytest.skip(f"needs permission to mount a file system: {mount.stderr.strip()}")
    yield disk
    while disk.is_mount():
        subprocess.run(["umount", "--lazy", disk], check=True)


def test_full_disk_ends_the_run_and_leaves_the_last_checkpoint_to_resume_from(
    small_disk: Path, tiny_data: Path, tmp_path: Path
) -> None:
    flags = ("--num-workers", 2, "--data", tiny_data, "--storage-path", small_disk, "--run-name", "run")
    result = run_main(*flags, *FLAGS, cwd=tmp_path)
    assert result.returncode == 1, result.stdout + result.stderr
    assert re.search(r"^error: \S+/disk/run cannot be written: .*No space left on device", result.stderr, re.MULTILINE)
    assert "Traceback" not in own_output(result.stderr + result.stdout)
    assert "--resume run" in result.stdout
    assert count_checkpoints(small_disk / "run") == len(list((small_disk / "run").glob("checkpoint_0*"))) == 2
    subprocess.run(["mount", "-o", "remount,size=1g", small_disk], check=True)
    resumed = run_main("--resume", "run", "--num-workers", 0, "--storage-path", small_disk, cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert "Resumed at step" in resumed.stdout


def test_disk_that_becomes_read_only_ends_the_run_with_a_clear_error(
    small_disk: Path, tiny_data: Path, tmp_path: Path
) -> None:
    flags = ("--num-workers", 0, "--data", tiny_data, "--storage-path", small_disk, "--run-name", "run", *FLAGS)
    with started(tmp_path, main_command(*flags, "--epochs", 40)) as process:
        wait_until(lambda: count_checkpoints(small_disk / "run") >= 1)
        # A read-only view over the same disk: the disk itself is busy while the run holds its lock.
        subprocess.run(["mount", "--bind", "-o", "ro", small_disk, small_disk], check=True)
        output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1, output
    assert re.search(r"^error: \S+/disk/run cannot be written: .*Read-only file system", output, re.MULTILINE), output
    assert "Traceback" not in output
    assert count_checkpoints(small_disk / "run") >= 1
