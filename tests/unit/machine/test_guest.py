import sys
from pathlib import Path

import pytest

from support.command import MAIN
from vgg_ddp.machine.guest import is_guest, own_arguments

OWN = ["--epochs", "1", "--data", "s3://bucket/a=b"]
LAUNCHERS = {
    "script after a flag": ["launcher.py", "-e", "ray_app/main.py", *OWN],
    "script in a flag": ["/opt/ml/code/launcher.py", "--head-num-cpus", "0", "--entrypoint=./ray_app/main.py", *OWN],
    "script after ours": ["launcher.py", *OWN, "--entrypoint", "ray_app/main.py"],
    "script as an argument": ["other.py", "--nodes", "4", str(MAIN), *OWN],
    "script in another flag": ["other.py", "--nodes=4", "--script=./main.py", *OWN],
    "script in a variable": ["launcher.py", *OWN],
    "its own flags after ours": ["launcher.py", "-e", "main.py", *OWN[:2], "--wait-shutdown", "5", *OWN[2:]],
}


@pytest.mark.parametrize("case", LAUNCHERS)
def test_arguments_of_another_launcher_are_ignored(case: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", LAUNCHERS[case])
    monkeypatch.chdir(tmp_path)
    assert is_guest(str(MAIN))
    assert own_arguments(str(MAIN)) == OWN


def test_script_of_its_own_process_keeps_all_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--init-from", "ray_app/main.py", "--wait-shutdown", "5"]
    monkeypatch.chdir(MAIN.parents[1])
    monkeypatch.setattr(sys, "argv", ["ray_app/main.py", *arguments])
    assert not is_guest(str(MAIN))
    assert own_arguments(str(MAIN)) == arguments
