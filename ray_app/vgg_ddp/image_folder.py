"""The images of a folder with one folder per class, their labels and their splits."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from vgg_ddp.flags import UsageError

TEST_NAMES = ("test", "val", "valid", "validation")
# Left behind by file managers.
NO_IMAGES = ("thumbs.db", "desktop.ini")


@dataclass(frozen=True)
class ImageFile:
    """An image file of a class.

    Attributes:
        path: below the image folder.
        size_bytes: when the folder was listed, as is the time of the last change.
    """

    path: str
    label: int
    size_bytes: int
    changed_ns: int

    def digest(self) -> bytes:
        """Decides the order of images: as good as random, and always the same."""
        return hashlib.sha256(os.fsencode(self.path)).digest()


@dataclass(frozen=True)
class ImageFolder:
    """Files of both splits, each in an order that mixes the classes."""

    root: Path
    class_names: tuple[str, ...]
    train: list[ImageFile]
    test: list[ImageFile]


def list_images(root: Path, test_fraction: float) -> ImageFolder:
    """Find the images in ROOT/CLASS/, or in ROOT/train/CLASS/ and ROOT/test/CLASS/ (or val).

    Without folders for the splits, the fraction of each class becomes the test split.

    Raises:
        UsageError: if the folder is not laid out like that, or holds no files.
        OSError: if it cannot be read.
    """
    if not root.is_dir():
        raise UsageError(f"{root} is no folder: expected one with a folder for each class.")
    folders = _folders(root)
    test = next((name for name in TEST_NAMES if name in folders), None)
    if "train" in folders and test:
        class_names = _folders(root / "train")
        strange = sorted(set(_folders(root / test)) - set(class_names))
        if strange:
            raise UsageError(f"{root / test} has the class {strange[0]}, which {root / 'train'} lacks.")
        train_files, test_files = (list(_files(root, split, class_names)) for split in ("train", test))
    else:
        if folders and set(folders) <= {"train", *TEST_NAMES}:
            raise UsageError(f"{root} has {' and '.join(folders)}, but not both train and test (or val).")
        class_names = folders
        train_files, test_files = _split(_files(root, "", class_names), test_fraction)
    if not class_names:
        raise UsageError(f"{root} has no folders: expected one for each class.")
    for name, files in (("training", train_files), ("test", test_files)):
        if not files:
            raise UsageError(f"{root} has no files for the {name} split in its {len(class_names)} class folder(s).")
    return ImageFolder(root, tuple(map(printable, class_names)), _mixed(train_files), _mixed(test_files))


def printable(name: str) -> str:
    """A file's name as text that can be stored: bytes that are no UTF-8 become escapes."""
    return os.fsencode(name).decode(errors="backslashreplace")


def _folders(path: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(path) if entry.is_dir() and not entry.name.startswith("."))


def _files(root: Path, split: str, class_names: list[str]) -> Iterator[ImageFile]:
    """All files of a split, also from folders within those of the classes."""
    for label, name in enumerate(class_names):
        of_class = root / split / name
        # The test split may lack a class.
        for folder, _, files in os.walk(of_class, onerror=_raise) if of_class.exists() else ():
            for file in files:
                if file.startswith(".") or file.lower() in NO_IMAGES:
                    continue
                path = Path(folder, file)
                status = path.stat() if path.exists() else path.lstat()
                yield ImageFile(str(path.relative_to(root)), label, status.st_size, status.st_mtime_ns)


def _raise(error: OSError) -> None:
    raise error


def _split(files: Iterable[ImageFile], test_fraction: float) -> tuple[list[ImageFile], list[ImageFile]]:
    """Training and test files: the rounded fraction of each class, but at least one and not all where there are two."""
    train, test = [], []
    # The files come class by class.
    for _, group in groupby(files, key=lambda file: file.label):
        of_class = _mixed(group)
        count = min(max(1, round(len(of_class) * test_fraction)), len(of_class) - 1)
        test += of_class[:count]
        train += of_class[count:]
    return train, test


def _mixed(files: Iterable[ImageFile]) -> list[ImageFile]:
    return sorted(files, key=ImageFile.digest)
