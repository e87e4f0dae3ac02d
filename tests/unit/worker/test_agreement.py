"""Workers run the driver's code."""

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from vgg_ddp.job import RefusedError
from vgg_ddp.machine.code import PACKAGE, Code, code_digest
from vgg_ddp.worker.agreement import require_same_code


def test_digest_depends_on_names_and_content_of_python_files_only(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(PACKAGE, copy)
    (copy / "notes.txt").write_text("x")
    assert code_digest(copy) == code_digest(PACKAGE)
    (copy / "new.py").write_text("")
    added = code_digest(copy)
    (copy / "new.py").rename(copy / "renamed.py")
    renamed = code_digest(copy)
    (copy / "renamed.py").write_text("\n")
    assert len({code_digest(PACKAGE), added, renamed, code_digest(copy)}) == 4


def test_other_copy_is_refused_only_if_it_differs() -> None:
    here = Code.of_this_process()
    require_same_code(replace(here, folder="/driver"))
    with pytest.raises(RefusedError, match=f"runs the code in {PACKAGE} on .* driver's in /driver on {here.host}"):
        require_same_code(replace(here, folder="/driver", digest="other"))
    with pytest.raises(RefusedError, match="on another-machine"):
        require_same_code(replace(here, host="another-machine", digest="other"))


def test_changed_files_of_the_same_copy_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        require_same_code(replace(Code.of_this_process(), digest="other"))
    assert f"Files in {PACKAGE} changed since the command started" in caplog.text


def test_hidden_files_are_not_code(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("a = 1\n")
    digest = code_digest(tmp_path)
    # The lock of an editor, and a file of macOS.
    (tmp_path / ".#a.py").symlink_to("somebody@somewhere")
    (tmp_path / "._a.py").write_bytes(bytes(9))
    assert code_digest(tmp_path) == digest
    (tmp_path / "b.py").touch()
    assert code_digest(tmp_path) != digest
