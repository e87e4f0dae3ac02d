"""What a run survives, and what it says of what it does not survive."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ray.train import WorkerGroupError

from command import MAIN, MARK, processes_marked, run_main, wait_until
from vgg_ddp.failures import first_cause

pytestmark = pytest.mark.slow

FLAGS = ("--batch-size", 24, "--precision", "fp32", "--lr", 0.02, "--epochs", 4, "--checkpoint-every-seconds", 0.5)


@pytest.fixture(scope="module")
def undisturbed(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The model of three workers that nothing disturbed."""
    cwd = tmp_path_factory.mktemp("undisturbed")
    result = run_main("--num-workers", 3, "--data", tiny_data, "--run-name", "run", *FLAGS, cwd=cwd)
    assert result.returncode == 0, result.stderr
    return (cwd / "runs/run/model.safetensors").read_bytes()


@contextmanager
def started(cwd: Path, *flags: object) -> Iterator[subprocess.Popen[str]]:
    """A run in the background; on leaving, everything that it started is ended."""
    command = [str(part) for part in (sys.executable, MAIN, *flags)]
    environment = os.environ | {MARK: cwd.name}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    process = subprocess.Popen(command, cwd=cwd, env=environment, text=True, start_new_session=True, **pipes)
    try:
        yield process
    finally:
        process.kill()
        for pid in processes_marked(cwd.name):
            os.kill(pid, signal.SIGKILL)


def whole_checkpoints(run: Path) -> int:
    return len(list(run.glob("checkpoint_*/manifest.json")))


def workers(mark: str) -> list[int]:
    return [pid for pid, command in processes_marked(mark).items() if command.startswith("ray::RayTrainWorker")]


def test_killed_worker_is_replaced_and_the_weights_are_those_of_an_undisturbed_run(
    undisturbed: bytes, tiny_data: Path, tmp_path: Path
) -> None:
    with started(tmp_path, "--num-workers", 3, "--data", tiny_data, "--run-name", "run", *FLAGS) as process:
        wait_until(lambda: whole_checkpoints(tmp_path / "runs/run") >= 1, seconds=120)
        os.kill(workers(tmp_path.name)[1], signal.SIGKILL)
        output, _ = process.communicate(timeout=200)
        assert process.returncode == 0, output
    assert "restart 1 of at most 3" in output
    assert (tmp_path / "runs/run/model.safetensors").read_bytes() == undisturbed


def test_killed_driver_leaves_nothing_running_and_its_run_resumes_to_the_same_weights(
    undisturbed: bytes, tiny_data: Path, tmp_path: Path
) -> None:
    with started(tmp_path, "--num-workers", 3, "--data", tiny_data, "--run-name", "run", *FLAGS) as process:
        wait_until(lambda: whole_checkpoints(tmp_path / "runs/run") >= 1, seconds=120)
        os.kill(process.pid, signal.SIGKILL)
        wait_until(lambda: not processes_marked(tmp_path.name), seconds=90)
    result = run_main("--resume", "run", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "runs/run/model.safetensors").read_bytes() == undisturbed
    assert whole_checkpoints(tmp_path / "runs/run") == len(list((tmp_path / "runs/run").glob("checkpoint_0*"))) == 2


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
    wait_until(lambda: bool(re.search("restart 1 of at most 1", "".join(capfd.readouterr()))), seconds=10)
