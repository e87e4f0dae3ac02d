"""Files of a run are written completely or not at all."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pyarrow import fs

from vgg_ddp.run.storage import Folder

PACKAGE_PARENT = Path(__file__).resolve().parents[3] / "ray_app"


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder.at(str(tmp_path / "folder"))


@pytest.fixture
def remote(tmp_path: Path) -> Folder:
    """A folder on a filesystem other than pyarrow's local one, like an object store."""
    (tmp_path / "bucket" / "runs").mkdir(parents=True)
    return Folder(fs.SubTreeFileSystem(str(tmp_path / "bucket"), fs.LocalFileSystem()), "runs")


def test_files_are_read_as_written(folder: Folder, remote: Folder) -> None:
    for place in (folder, remote):
        place.write("a", b"first")
        place.write("a", memoryview(b"second"))
        assert place.read("a") == b"second"
        assert place.names() == ["a"]


def test_file_is_written_to_its_path(folder: Folder, tmp_path: Path) -> None:
    (folder / "run").write("a.txt", b"1")
    assert (tmp_path / "folder" / "run" / "a.txt").read_bytes() == b"1"


def test_failing_write_leaves_the_old_content_and_nothing_else(folder: Folder) -> None:
    folder.write("a", b"old")
    with pytest.raises(TypeError):
        folder.write("a", "not bytes")  # type: ignore[arg-type]
    assert folder.read("a") == b"old"
    assert folder.names() == ["a"]


def test_write_over_a_folder_fails_and_leaves_nothing(folder: Folder) -> None:
    (folder / "a").write("inside", b"old")
    with pytest.raises(OSError):
        folder.write("a", b"new")
    assert folder.names() == ["a"]
    assert (folder / "a").read("inside") == b"old"


def test_write_below_a_file_fails(folder: Folder) -> None:
    folder.write("a", b"old")
    with pytest.raises(OSError):
        (folder / "a").write("b", b"new")
    assert folder.read("a") == b"old"


def test_killed_writer_leaves_one_complete_content(folder: Folder, tmp_path: Path) -> None:
    size = 4_000_000
    program = (
        "import itertools; from vgg_ddp.run.storage import Folder\n"
        f"folder = Folder.at({str(tmp_path / 'folder')!r})\n"
        f"for letter in itertools.cycle([b'a', b'b']): folder.write('f', letter * {size})"
    )
    writer = subprocess.Popen([sys.executable, "-c", program], cwd=PACKAGE_PARENT)
    try:
        deadline = time.monotonic() + 30
        while not folder.exists("f") and time.monotonic() < deadline:
            time.sleep(0.01)
        for _ in range(20):
            assert folder.read("f") in (b"a" * size, b"b" * size)
    finally:
        writer.kill()
        writer.wait()
    assert folder.read("f") in (b"a" * size, b"b" * size)


def test_names_are_sorted(folder: Folder) -> None:
    for name in ("b", "a10", "a9", "c"):
        folder.write(name, b"")
    (folder / "aa").write("inside", b"")
    assert folder.names() == ["a10", "a9", "aa", "b", "c"]


def test_folder_that_does_not_exist_is_empty(folder: Folder) -> None:
    assert folder.names() == []
    assert not folder.exists()
    with pytest.raises(FileNotFoundError):
        folder.read("a")


def test_existing_files_and_folders_are_found(folder: Folder) -> None:
    (folder / "a").write("b", b"")
    assert folder.exists()
    assert folder.exists("a")
    assert (folder / "a").exists("b")
    assert not folder.exists("b")


def test_files_and_folders_are_deleted(folder: Folder, remote: Folder) -> None:
    for place in (folder, remote):
        place.write("file", b"")
        place.filesystem.create_dir((place / "sub").path)
        (place / "sub").write("file", b"")
        place.delete("file")
        place.delete("sub")
        assert place.names() == []


def test_deleting_a_missing_file_is_not_an_error(folder: Folder) -> None:
    folder.delete("never there")


def test_local_paths_are_absolute_with_home_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert str(Folder.at("runs")) == str(tmp_path / "runs")
    assert str(Folder.at("~/runs") / "a") == "/home/someone/runs/a"
    assert Folder.at("runs").is_local


def test_file_uri_is_the_local_folder(folder: Folder, tmp_path: Path) -> None:
    folder.write("a", b"1")
    by_uri = Folder.at(f"file://{tmp_path}/folder/")
    assert by_uri.is_local
    assert by_uri == folder


def test_unknown_scheme_is_a_value_error() -> None:
    with pytest.raises(ValueError, match=re.escape("nosuch://")):
        Folder.at("nosuch://bucket/runs")


def test_open_reader_sees_overwritten_content(tmp_path: Path) -> None:
    folder = Folder.at(str(tmp_path / "new"))
    folder.overwrite("file", b"one")
    with (tmp_path / "new" / "file").open("rb", buffering=0) as reader:
        assert reader.read() == b"one"
        folder.overwrite("file", b"one two")
        assert reader.read() == b" two"
    folder.overwrite("file", b"on")
    assert folder.read("file") == b"on"
