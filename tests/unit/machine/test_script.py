"""What every script checks and mends before it does anything else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.command import MAIN

PRINT = """
import sys
from vgg_ddp.machine.environment import run_script

run_script(lambda: print("the result") or 7, output_is_result="result" in sys.argv)
"""
SHOW_PATH = """
import os, sys
from vgg_ddp.machine.environment import check_environment

check_environment()
print(os.getcwd() in sys.path, os.environ["PYTHONPATH"])
"""


def run_program(program: str, *arguments: str, cwd: Path, **options: object) -> "subprocess.CompletedProcess[str]":
    """Run a program from a file next to a link to the package."""
    (cwd / "script").mkdir()
    (cwd / "script/program.py").write_text(program)
    (cwd / "script/vgg_ddp").symlink_to(MAIN.parent / "vgg_ddp")
    command = [sys.executable, "script/program.py", *arguments]
    return subprocess.run(command, cwd=cwd, text=True, timeout=60, **options)  # type: ignore[call-overload, no-any-return]


@pytest.mark.parametrize(("kind", "exit_code"), [("result", 1), ("log", 7)])
def test_full_disk_fails_only_a_script_whose_output_is_its_result(kind: str, exit_code: int, tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        result = run_program(PRINT, kind, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE)
    assert result.returncode == exit_code
    error = "error: standard output cannot be written: No space left on device\n"
    assert result.stderr == (error if kind == "result" else "")


@pytest.mark.parametrize(
    ("given", "is_searched", "left"),
    [
        (":", False, ""),
        (":lib:lib2", False, "lib:lib2"),
        ("lib", False, "lib"),
        # Listed on purpose.
        (".", True, "."),
        (":.", True, "."),
    ],
)
def test_working_directory_is_searched_for_modules_only_on_purpose(
    given: str, is_searched: bool, left: str, tmp_path: Path
) -> None:
    result = run_program(SHOW_PATH, cwd=tmp_path, env=os.environ | {"PYTHONPATH": given}, capture_output=True)
    assert result.stdout.split() == [str(is_searched), *left.split()], result.stderr
