"""List the images of a folder with one subfolder per class, with their labels and splits."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from vgg_ddp.flags import UsageError

TEST_NAMES = ("test", "val", "valid", "validation")
# Files that file managers create.
IGNORED_FILES = ("thumbs.db", "desktop.ini")


@dataclass(frozen=True)
class ImageFile:
    """An image file of a class.

    Attributes:
        path: path relative to the image folder.
        size_bytes: size when the folder was listed.
        changed_ns: modification time when the folder was listed.
    """

    path: str
    label: int
    size_bytes: int
    changed_ns: int

    def sort_key(self) -> bytes:
        """Pseudo-random, but reproducible."""
        return hashlib.sha256(os.fsencode(self.path)).digest()


@dataclass(frozen=True)
class ImageFolder:
    """Files of both splits, shuffled."""

    root: Path
    class_names: tuple[str, ...]
    train: list[ImageFile]
    test: list[ImageFile]


def list_images(root: Path, test_fraction: float) -> ImageFolder:
    """Find the images in ROOT/CLASS/, or in ROOT/train/CLASS/ and ROOT/test/CLASS/ (or val).

    Without subfolders for the splits, this fraction of each class becomes the test split.

    Raises:
        UsageError: if the folder has another layout, or no files.
        OSError: if it cannot be read.
    """
    if not root.is_dir():
        raise UsageError(f"{root} is not a folder: expected one subfolder per class.")
    folders = _folders(root)
    test = next((name for name in TEST_NAMES if name in folders), None)
    if "train" in folders and test:
        class_names = _folders(root / "train")
        unknown = sorted(set(_folders(root / test)) - set(class_names))
        if unknown:
            raise UsageError(f"{root / test} has class {unknown[0]}, but {root / 'train'} does not.")
        train_files, test_files = (list(_files(root, split, class_names)) for split in ("train", test))
    else:
        if folders and set(folders) <= {"train", *TEST_NAMES}:
            raise UsageError(f"{root} has {' and '.join(folders)}, but not both train and test (or val).")
        class_names = folders
        train_files, test_files = _split(_files(root, "", class_names), test_fraction)
    if not class_names:
        raise UsageError(f"{root} has no subfolders: expected one per class.")
    for name, files in (("training", train_files), ("test", test_files)):
        if not files:
            raise UsageError(f"{root} has no {name} images in its {len(class_names)} class folder(s).")
    return ImageFolder(root, tuple(map(printable, class_names)), _shuffled(train_files), _shuffled(test_files))


def printable(name: str) -> str:
    """A file name as UTF-8 text: other bytes are escaped."""
    return os.fsencode(name).decode(errors="backslashreplace")


def _folders(path: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(path) if entry.is_dir() and not entry.name.startswith("."))


def _files(root: Path, split: str, class_names: list[str]) -> Iterator[ImageFile]:
    """All files of a split, including those in subfolders of the class folders."""
    for label, name in enumerate(class_names):
        class_folder = root / split / name
        # The test split may lack a class.
        for folder, _, files in os.walk(class_folder, onerror=_raise) if class_folder.exists() else ():
            for file in files:
                if file.startswith(".") or file.lower() in IGNORED_FILES:
                    continue
                path = Path(folder, file)
                status = path.stat() if path.exists() else path.lstat()
                yield ImageFile(str(path.relative_to(root)), label, status.st_size, status.st_mtime_ns)


def _raise(error: OSError) -> None:
    raise error


def _split(files: Iterable[ImageFile], test_fraction: float) -> tuple[list[ImageFile], list[ImageFile]]:
    """Split each class: the test split gets the rounded fraction, and each split at least one file if possible."""
    train, test = [], []
    # `files` is ordered by class.
    for _, group in groupby(files, key=lambda file: file.label):
        class_files = _shuffled(group)
        count = min(max(1, round(len(class_files) * test_fraction)), len(class_files) - 1)
        test += class_files[:count]
        train += class_files[count:]
    return train, test


def _shuffled(files: Iterable[ImageFile]) -> list[ImageFile]:
    return sorted(files, key=ImageFile.sort_key)
