"""The folder and the token that Ray needs."""

import os
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from vgg_ddp.driver import ray_files
from vgg_ddp.driver.ray_files import LONGEST_SOCKET, MAX_FOLDER_BYTES, choose_temporary_folder, provide_token
from vgg_ddp.machine.environment import private_folder


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"HOME": str(tmp_path)})


def test_longest_socket_name_is_that_of_ray() -> None:
    spec = find_spec("ray")
    assert spec is not None and spec.origin is not None
    modules = Path(spec.origin).parent / "dashboard/modules"
    names = re.findall(r"^class (\w+)\(SubprocessModule", "\n".join(f.read_text() for f in modules.rglob("*.py")), re.M)
    assert len(names) > 3
    assert max(names, key=len) == LONGEST_SOCKET.rpartition("dash_")[2]


def test_short_folders_are_left_alone() -> None:
    choose_temporary_folder()
    assert "RAY_TMPDIR" not in os.environ
    os.environ["RAY_TMPDIR"] = "/tmp"
    choose_temporary_folder()
    assert os.environ["RAY_TMPDIR"] == "/tmp"


@pytest.mark.parametrize("bad", ["x" * (MAX_FOLDER_BYTES + 1), "/proc/missing", "relative"])
def test_unsuitable_tmpdir_is_replaced(bad: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.environ["TMPDIR"] = bad
    choose_temporary_folder()
    assert os.environ["RAY_TMPDIR"] == private_folder()
    assert os.environ["TMPDIR"] == bad


def test_tmpdir_that_is_too_long_for_sockets_of_python_is_replaced(tmp_path: Path) -> None:
    os.environ["TMPDIR"] = f"{tmp_path}/{'x' * 100}"
    choose_temporary_folder()
    assert os.environ["TMPDIR"] == os.environ["RAY_TMPDIR"] == private_folder()


def test_private_folder_belongs_to_this_user() -> None:
    folder = private_folder()
    assert folder is not None
    assert Path(folder).stat().st_uid == os.getuid()
    assert len(folder) <= MAX_FOLDER_BYTES


def test_token_is_made_only_where_ray_cannot_store_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    provide_token()
    assert (tmp_path / ".ray/auth_token").read_bytes() == b""
    (tmp_path / ".ray/auth_token").write_text("stored")
    provide_token()
    assert ray_files.TOKEN not in os.environ and capsys.readouterr().out == ""
    os.environ["HOME"] = "/proc"
    provide_token()
    assert re.fullmatch("[0-9a-f]{64}", os.environ[ray_files.TOKEN])
    assert os.environ[ray_files.TOKEN] not in capsys.readouterr().out
    os.environ[ray_files.TOKEN] = "mine"
    provide_token()
    assert os.environ[ray_files.TOKEN] == "mine"
