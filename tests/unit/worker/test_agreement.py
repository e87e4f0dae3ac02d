"""Workers run the driver's code, and agree on how the run starts."""

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from support.ranks import run_ranks
from vgg_ddp.config import TrainConfig
from vgg_ddp.job import Job, RefusedError
from vgg_ddp.machine.code import PACKAGE, Code, code_digest
from vgg_ddp.run import checkpoint
from vgg_ddp.run.storage import Folder
from vgg_ddp.worker.agreement import agree_on_start, require_same_code


def record_start(rank: int, folder: Path) -> None:
    """Agree on the start as under Ray, then as under torchrun, where only rank 0 knows the run; write it to a file."""
    run, config = Folder.at(str(folder / "run")), TrainConfig()
    for launcher, known in (("ray", True), ("torchrun", rank == 0)):
        job = Job(config, None, run if known else None, use_gpu=False, is_local=False)  # type: ignore[arg-type]
        start = agree_on_start(job, torch.device("cpu"))
        step = start.state["step"] if start.state else None
        (folder / f"{launcher}{rank}").write_text(f"{start.run.path} {start.newest} {start.precision} {step}")


def test_all_workers_read_the_newest_intact_checkpoint_when_they_agree_on_it(tmp_path: Path) -> None:
    run = Folder.at(str(tmp_path / "run"))
    whole, damaged = checkpoint.new_name(3), checkpoint.new_name(4)
    for step, name in ((3, whole), (4, damaged)):
        checkpoint.write(run, name, {"step": step, "precision": "fp32"})
    Path((run / damaged / "state.pt").path).write_bytes(b"cut")
    run_ranks(2, record_start, tmp_path)
    starts = {name: (tmp_path / name).read_text() for name in ("ray0", "ray1", "torchrun0", "torchrun1")}
    read, unread = (f"{run.path} {whole} fp32 {step}" for step in (3, None))
    # Under torchrun, the other ranks read it afterwards.
    assert starts == {"ray0": read, "ray1": read, "torchrun0": read, "torchrun1": unread}
    assert run.names() == [whole]


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
