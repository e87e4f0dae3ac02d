"""List folders and files, without those that operating systems, file managers, and network drives add."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from vgg_ddp.data.names import IMAGE_SUFFIXES, first_names

# In lower case. Names that start with a dot also count.
SYSTEM_FOLDERS = (
    "__macosx",
    "@eadir",
    "lost+found",
    "#recycle",
    "#snapshot",
    "$recycle.bin",
    "system volume information",
)
SYSTEM_FILES = ("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r")


class Listing:
    """Lists a tree of folders, and remembers what it leaves out."""

    def __init__(self) -> None:
        self._system_folders: set[str] = set()
        self._system_files: Counter[str] = Counter()
        self._links: set[str] = set()

    def folders(self, path: Path) -> list[str]:
        """Sorted names of the folders in a folder; links to folders count, unless they lead back to where they are.

        Raises:
            OSError: if the folder cannot be read.
        """
        names = sorted(entry.name for entry in os.scandir(path) if _is_folder(entry))
        return [name for name in names if not self._leaves_out(path / name)]

    def _leaves_out(self, folder: Path) -> bool:
        if folder.name.startswith(".") or folder.name.lower() in SYSTEM_FOLDERS:
            self._system_folders.add(str(folder))
            return True
        if folder.is_symlink() and folder.parent.resolve().is_relative_to(folder.resolve()):
            self._links.add(str(folder))
            return True
        return False

    def files(self, path: Path) -> Iterator[Path]:
        """All files in a folder and in the folders below it, except links to folders.

        Raises:
            OSError: if a folder cannot be read.
        """
        for parent, folders, files in os.walk(path, onerror=_raise):
            folders[:] = [name for name in folders if not self._leaves_out(Path(parent, name))]
            # `os.walk` lists links to folders, but does not follow them.
            self._links.update(
                os.path.join(parent, name) for name in folders if os.path.islink(os.path.join(parent, name))
            )
            for name in files:
                if name.startswith(".") or name.lower() in SYSTEM_FILES:
                    self._system_files[name] += 1
                else:
                    yield Path(parent, name)

    def notes(self) -> list[str]:
        """What was left out, one line per kind."""
        counted = [
            f"{count:,} {kind} ({first_names(sorted(names))})"
            for kind, count, names in (
                (
                    "hidden or system folder(s)",
                    len(self._system_folders),
                    {os.path.basename(name) for name in self._system_folders},
                ),
                ("hidden or system file(s)", self._system_files.total(), set(self._system_files)),
            )
            if count
        ]
        notes = [f"skipped {' and '.join(counted)}."] if counted else []
        if self._links:
            notes.append(f"skipped {len(self._links):,} linked folder(s): {first_names(sorted(self._links))}.")
        return notes


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # For a link to itself, `entry.is_dir` raises OSError.
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def image_names(path: Path) -> list[str]:
    """Sorted names of the files in a folder that are images, by their suffixes."""
    names = (entry.name for entry in os.scandir(path) if not entry.name.startswith("."))
    return sorted(name for name in names if name.lower().endswith(IMAGE_SUFFIXES))


def _raise(error: OSError) -> None:
    raise error
