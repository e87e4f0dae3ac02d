"""Names of processes, from which others see whether they still exist."""

import subprocess
import sys
from pathlib import Path

import pytest

from support.command import ROOT, wait_until
from vgg_ddp.machine import process
from vgg_ddp.machine.process import is_dead, own_identity

NAME_AND_WAIT = """
from vgg_ddp.machine.process import own_identity
print(own_identity(), flush=True)
input()
"""


def test_process_is_dead_once_it_has_ended_even_before_its_parent_asks() -> None:
    command = [sys.executable, "-c", NAME_AND_WAIT]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, cwd=ROOT / "ray_app", **pipes) as other:  # type: ignore[call-overload]
        identity = other.stdout.readline().strip()
        assert identity != own_identity() and not is_dead(identity) and not is_dead(own_identity())
        other.kill()
        # A zombie until this process waits for it.
        wait_until(lambda: is_dead(identity))
    assert is_dead(identity)
    # A later process with the same number.
    assert is_dead(own_identity() + "0")


def test_process_of_another_machine_is_not_dead(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "boot_id").write_text("another\n")
    here = own_identity()
    monkeypatch.setattr(process, "BOOT_ID", tmp_path / "boot_id")
    there = own_identity()
    monkeypatch.undo()
    assert there != here and not is_dead(there + "0")
    assert not is_dead("") and not is_dead("elsewhere/0")


def test_machine_without_proc_names_each_process_differently(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(process, "BOOT_ID", tmp_path / "missing")
    assert own_identity() == own_identity() and own_identity().startswith("elsewhere/")
    assert not is_dead(own_identity())
