"""Two commands on one run, in a folder on the network as two machines mount it: they do not share locks."""

import signal
import sys
import time
from pathlib import Path

import pytest

from support.command import (
    MAIN,
    PATIENCE,
    count_checkpoints,
    main_command,
    process_tree,
    run_main,
    send,
    started,
    wait_until,
)
from support.two_mounts import two_mounts

FLAGS = ("--recipe", "classic", "--batch-size", 24, "--precision", "fp32", "--epochs", 400, "--device", "cpu")


def content(run: Path) -> dict[str, bytes]:
    """The files of a run, except its lease and unfinished ones."""
    files = [path for path in run.rglob("*") if path.is_file() and path.suffix != ".tmp"]
    return {str(path): path.read_bytes() for path in files if path.parent.name != "lease"}


@pytest.mark.slow
def test_frozen_command_ends_without_writing_once_another_machine_continues_its_run(
    tiny_data: Path, tmp_path: Path
) -> None:
    with two_mounts(tmp_path) as (here, there):
        torchrun = (Path(sys.executable).with_name("torchrun"), "--standalone", "--nproc-per-node=2", MAIN)
        command = [*torchrun, *FLAGS, "--data", tiny_data, "--storage-path", here, "--run-name", "run"]
        resume = ("--resume", "run", "--num-workers", 0, "--storage-path", there)
        run, log = tmp_path / "stored" / "run", tmp_path / "log"
        with started(tmp_path, list(map(str, command))) as frozen:
            wait_until(lambda: count_checkpoints(run) > 0)
            processes = process_tree(frozen.pid)
            send(signal.SIGSTOP, processes)
            with started(tmp_path, main_command(*resume), log=log) as other:
                wait_until(lambda: "Resumed at step" in log.read_text())
                send(signal.SIGSTOP, [other.pid])
                before, woken_at = content(run), time.monotonic()
                send(signal.SIGCONT, processes)
                output, _ = frozen.communicate(timeout=PATIENCE)
                assert frozen.returncode == 1
                assert "error: another command has taken over run run, " in output
                # torchrun prints a traceback of its own.
                assert "LeaseLostError" not in output
                assert content(run) == before
                assert time.monotonic() - woken_at < 60
                send(signal.SIGCONT, [other.pid])
                refused = run_main(*resume[:-1], here, cwd=tmp_path)
                assert other.poll() is None
    assert log.read_text().startswith("Waiting:   up to 30 s, because run run may still be running\n")
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    assert refused.stderr.splitlines()[-1].startswith(f"error: run run in --storage-path {here} is already running")
