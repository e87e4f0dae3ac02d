"""Only one command uses a run at a time."""

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

from support.command import ROOT
from support.run_writer import SECONDS
from vgg_ddp.config import TrainConfig
from vgg_ddp.flags import UsageError
from vgg_ddp.run import lease
from vgg_ddp.run.lock import lock_file, locked
from vgg_ddp.run.notes import print_note_once
from vgg_ddp.run.runs import Run, open_run, require_writable

# Locks a run, reports it, and waits to be killed.
LOCK = """
import sys, time
from vgg_ddp.config import TrainConfig
from vgg_ddp.run.lock import locked
from vgg_ddp.run.runs import open_run
config = TrainConfig(run_name="run", storage_path=sys.argv[1])
with locked(open_run(config, [])):
    print("locked", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = named("run", tmp_path)
    require_writable(run)
    return run


def named(name: str, storage: Path) -> Run:
    return open_run(TrainConfig(run_name=name, storage_path=str(storage)), [])


def test_run_that_is_already_running_cannot_be_started(run: Run, tmp_path: Path) -> None:
    command = [sys.executable, "-c", LOCK, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT / "ray_app") as other:
        assert other.stdout and other.stdout.readline() == "locked\n"
        with pytest.raises(UsageError, match=r"run run in --storage-path .* is already running"), locked(run):
            pass
        with locked(named("another", tmp_path)):
            pass
        other.kill()
    with locked(run):
        assert (tmp_path / ".running-run").exists()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("is_created_again", [True, False])
def test_lock_of_a_file_that_another_command_deleted_is_taken_again(
    run: Run, monkeypatch: pytest.MonkeyPatch, is_created_again: bool
) -> None:
    path = lock_file(run)
    assert path
    flock, attempts = fcntl.flock, []

    def flock_late(file: IO[str], operation: int) -> None:
        """The first call comes after another command has ended, and perhaps after a third has started and ended."""
        attempts.append(file.fileno())
        if len(attempts) == 1:
            os.unlink(path)
            if is_created_again:
                Path(path).touch()
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", flock_late)
    with locked(run):
        with open(path) as other, pytest.raises(BlockingIOError):
            flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert len(attempts) == 2
    assert not os.path.exists(path)


def fail(*_: object) -> None:
    raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


def test_disk_without_locks_has_a_lease_in_their_place(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(fcntl, "flock", fail)
    for name, value in SECONDS.items():
        monkeypatch.setattr(lease, name, value)
    with locked(run) as held:
        assert held.folder.lease
        with pytest.raises(UsageError, match="already running"), locked(run):
            pass
        assert (tmp_path / ".running-run").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    with locked(run):
        pass


def test_disk_with_neither_locks_nor_hard_links_is_noted(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fcntl, "flock", fail)
    monkeypatch.setattr(os, "link", fail)
    print_note_once.cache_clear()
    with locked(run) as held:
        assert held.folder.lease is None
    assert capsys.readouterr().err == (
        "NOTE: nothing prevents other commands from using run run at the same time: its file system does not support "
        "hard links.\n"
    )
