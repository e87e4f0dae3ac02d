"""A command that is killed between two changes of a disk leaves a run that the next one finishes, and no litter."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import pytest
from pyarrow import fs

from support.simulated_training import STEPS, WatchedSaver, config_of, train
from support.simulation import Killed
from vgg_ddp.flags import UsageError
from vgg_ddp.run import lock, storage
from vgg_ddp.run.checkpoint import list_names
from vgg_ddp.run.lock import locked
from vgg_ddp.run.runs import open_run, require_writable
from vgg_ddp.run.storage import KEEP

CHANGES = ("makedirs", "replace", "link", "unlink", "fsync")


class Disk:
    """Counts the changes of the disk, and kills the command before one of them. What is dead changes nothing more.

    Attributes:
        left: how many changes the command may still make.
    """

    def __init__(self) -> None:
        self.left = 10**6

    def change(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Killed

    def __getattr__(self, name: str) -> Any:
        """Takes the place of the module `os`."""
        function = getattr(os, name)
        if name not in CHANGES:
            return function

        def changing(*arguments: Any, **more: Any) -> Any:
            self.change()
            # What the test checks does not depend on it, and it is slow.
            return None if name == "fsync" else function(*arguments, **more)

        return changing

    def open(self, path: str, mode: str) -> IO[Any]:
        """Takes the place of `open`; the command may also be killed before it writes the content."""
        self.change()
        file = open(path, mode)  # noqa: SIM115 - the caller closes it
        self.change()
        return file


class FileSystem(fs.LocalFileSystem):  # type: ignore[misc]
    """pyarrow's, which may stop in the middle."""

    disk: Disk

    def create_dir(self, path: str, recursive: bool = True) -> None:
        self.disk.change()
        super().create_dir(path, recursive=recursive)

    def delete_file(self, path: str) -> None:
        self.disk.change()
        super().delete_file(path)

    def delete_dir(self, path: str) -> None:
        # state.pt first, as it may happen.
        for file in sorted(Path(path).iterdir(), reverse=True):
            self.disk.change()
            file.unlink()
        self.disk.change()
        Path(path).rmdir()


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    disk = Disk()
    FileSystem.disk = disk
    names = ("FileSystem", "S3FileSystem", "FileType", "FileSelector")
    replaced = type("fs", (), {name: getattr(fs, name) for name in names} | {"LocalFileSystem": FileSystem})
    monkeypatch.setattr(storage, "fs", replaced)
    monkeypatch.setattr(storage, "open", disk.open, raising=False)
    for module in (storage, lock):
        monkeypatch.setattr(module, "os", disk)
    return disk


def command(folder: Path, saved: list[str], resumed: list[str | None]) -> None:
    """Train; note the checkpoints that are reported as complete, and the one that is resumed."""
    run = open_run(config_of(str(folder)), [])
    if run.exists and run.is_finished():
        return
    require_writable(run)
    with locked(run) as run:
        add_newest = lambda: saved.append(list_names(run.folder)[0])  # noqa: E731
        train(run, resumed.append, lambda at: WatchedSaver(at, add_newest), lambda _: None)


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_command_killed_before_each_change_of_the_disk_is_continued_without_loss_or_litter(
    disk: Disk, tmp_path: Path
) -> None:
    index = 0
    while True:
        folder = tmp_path / str(index)
        saved: list[str] = []
        resumed: list[str | None] = []
        disk.left = index
        with suppress(Killed, UsageError):
            command(folder, saved, resumed)
        was_killed, disk.left = disk.left < 0, 10**6
        if not was_killed:
            break
        complete = {path.parent.name for path in folder.rglob("manifest.json") if (path.parent / "state.pt").exists()}
        newest = max(complete, default=None)
        assert len(list(folder.rglob("manifest.json"))) == len(complete) >= len(saved[-KEEP:]), index
        assert (newest or "") >= max(saved, default=""), index
        resumed.clear()
        command(folder, saved, resumed)
        assert not resumed or resumed[0] == newest, index
        left = files(folder)
        checkpoints = sorted({name.split("/")[1] for name in left if "/checkpoint_" in name})
        assert len(checkpoints) <= min(KEEP, STEPS)
        expected = {f"run/{name}/{file}" for name in checkpoints for file in ("state.pt", "manifest.json")}
        expected |= {f"run/{name}" for name in ("config.json", "metrics.csv", "model.safetensors")}
        # Only a command that has something to do locks the run, and deletes the file afterwards.
        assert set(left) - (set() if resumed else {".running-run"}) == expected, index
        index += 1
    assert index > 50
