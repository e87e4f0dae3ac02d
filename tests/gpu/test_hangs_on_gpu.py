"""Ranks that hang while they train with NCCL: they are named, and no process waits forever."""

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from support.command import PATIENCE, count_checkpoints, marked_processes, started, torchrun_command, wait_until

pytestmark = pytest.mark.slow

FakeGpus = Callable[..., dict[str, str]]

FLAGS: tuple[object, ...] = ("--recipe", "classic", "--batch-size", 24, "--precision", "fp32", "--device", "gpu")
FLAGS += ("--run-name", "run")


def ranks(mark: str) -> list[int]:
    return [pid for pid, line in marked_processes(mark).items() if "torchrun" not in line]


def test_stopped_rank_is_named_and_the_run_recovers(tiny_data: Path, fake_gpus: FakeGpus, tmp_path: Path) -> None:
    flags = ("--data", tiny_data, "--epochs", 1, "--checkpoint-every-seconds", 0.01, "--collective-timeout-seconds", 4)
    log = tmp_path / "log"
    environment = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", **fake_gpus(2)}
    with started(tmp_path, torchrun_command(2, *flags, *FLAGS), log, **environment) as process:
        wait_until(lambda: count_checkpoints(tmp_path / "runs/run") >= 1)
        stopped = ranks(tmp_path.name)[-1]
        os.kill(stopped, signal.SIGSTOP)
        stopped_at = time.monotonic()
        wait_until(lambda: "HungRankError" in log.read_text())
        # The timeout, ten seconds for an answer, some to end the wait, and more on a busy machine.
        assert time.monotonic() - stopped_at < 4 + 30
        # torchrun would wait for it for half a minute.
        os.kill(stopped, signal.SIGKILL)
        assert process.wait(PATIENCE) == 0, log.read_text()
    output = log.read_text()
    assert re.search(r"HungRankError: rank \d hung: no answer within 4 s in step \d+ \(--coll", output), output
    assert "Resumed at step" in output


def test_process_whose_gpu_hangs_ends_with_an_error(tiny_data: Path, fake_gpus: FakeGpus, tmp_path: Path) -> None:
    flags = ("--data", tiny_data, "--epochs", 40, "--collective-timeout-seconds", 2)
    environment = fake_gpus(2, hang_gpu=1, hang_after_launches=1000)
    log = tmp_path / "log"
    with started(tmp_path, torchrun_command(2, *flags, *FLAGS), log, **environment):
        wait_until(lambda: (tmp_path / "runs/run/startup.json").exists())
        training = ranks(tmp_path.name)
        wait_until(lambda: "hung: no answer within 2 s" in log.read_text())
        # One of them waits for its GPU, which never answers.
        wait_until(lambda: not any(map(psutil.pid_exists, training)), seconds=90)
    # Both processes wait in about the same place. On the fake GPUs, the one that hangs may even be ahead.
    assert re.search(r"^error: (a rank|rank \d) hung: no answer within 2 s in step \d+", log.read_text(), re.MULTILINE)
