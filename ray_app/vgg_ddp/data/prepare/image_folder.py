"""List the images of a folder with one subfolder per class, with their labels and splits."""

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from vgg_ddp.data.names import first_names
from vgg_ddp.data.prepare.listing import Listing, image_names
from vgg_ddp.data.prepare.split_folders import find_splits, refuse_splits_in_classes
from vgg_ddp.flags import UsageError


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
    """Files of both splits, shuffled.

    Attributes:
        notes: what a user should know about the folder, one line each.
    """

    root: Path
    class_names: tuple[str, ...]
    train: list[ImageFile]
    test: list[ImageFile]
    notes: tuple[str, ...]


def list_images(root: Path, test_fraction: float) -> ImageFolder:
    """Find the images in ROOT/CLASS/, or in ROOT/train/CLASS/ and ROOT/test/CLASS/ (see split_folders.py).

    Without subfolders for the splits, this fraction of each class becomes the test split.

    Raises:
        UsageError: if the folder has another layout, or no files.
        OSError: if it cannot be read.
    """
    if not root.is_dir():
        raise UsageError(f"{root} is not a folder: expected one subfolder per class.")
    listing = Listing()
    folders = listing.folders(root)
    notes = _note_loose_images(root) if folders else []
    splits = find_splits(root, folders, listing)
    if splits:
        train_root = root / splits.train
        class_names = _classes(train_root, listing)
        if not listing.folders(root / splits.test):
            raise UsageError(
                f"{root / splits.test} has no class folders, so its images have no labels: to split the images of "
                f"{train_root} at random, give that folder."
            )
        unknown = sorted(set(_classes(root / splits.test, listing)) - set(class_names))
        if unknown:
            raise UsageError(f"{root / splits.test} has class {unknown[0]}, but {train_root} does not.")
        train, test = (list(_files(root, split, class_names, listing)) for split in (splits.train, splits.test))
        notes += [note for split in (splits.train, splits.test) for note in _note_loose_images(root / split)]
        if splits.left_out:
            notes.append(f"used {splits.train} and {splits.test}; ignored {' and '.join(splits.left_out)}.")
    else:
        class_names = _classes(root, listing)
        train, test = _split(_files(root, "", class_names, listing), test_fraction)
    for name, files in (("training", train), ("test", test)):
        if not files:
            raise UsageError(f"{root} has no {name} images in its {len(class_names)} class folder(s).")
    notes += [*_check_classes(root, class_names, train, test), *listing.notes()]
    return ImageFolder(
        root, tuple(map(printable, class_names)), _shuffled(train), _shuffled(test), tuple(map(printable, notes))
    )


def _classes(folder: Path, listing: Listing) -> list[str]:
    """Names of the class folders.

    Raises:
        UsageError: if there are none, or they are something else.
    """
    names = listing.folders(folder)
    if names:
        refuse_splits_in_classes(folder, names, listing)
        return names
    images = image_names(folder)
    if not images:
        raise UsageError(f"{folder} has no subfolders: expected one per class.")
    # Of names such as cat.0.jpg, the first word is the class.
    word = re.match(r"[^\W\d_]+(?=\W|\d|_)", images[0])
    example = folder / (word[0] if word else "CLASS") / images[0]
    raise UsageError(
        f"{folder} has no subfolders, but {len(images):,} images: expected one per class, as in {example}."
    )


def _note_loose_images(folder: Path) -> list[str]:
    images = image_names(folder)
    if not images:
        return []
    return [f"ignored {len(images):,} image(s) in {folder} that are not in a class folder, such as {images[0]}."]


def _check_classes(
    root: Path, class_names: list[str], train: Iterable[ImageFile], test: Iterable[ImageFile]
) -> Iterator[str]:
    """Notes about classes without images.

    Raises:
        UsageError: if a class has test images only.
    """
    in_train, in_test = ({file.label for file in files} for files in (train, test))
    for label in sorted(in_test - in_train):
        raise UsageError(f"class {class_names[label]} in {root} has test images, but no training images.")
    everything = set(range(len(class_names)))
    for kind, labels in (("", everything - in_train - in_test), ("test ", in_train - in_test)):
        if labels:
            names = [class_names[label] for label in sorted(labels)]
            yield f"{len(names):,} class(es) have no {kind}images: {first_names(names)}."
    if len(class_names) == 1:
        yield f"there is only one class, {class_names[0]}: is {root} the right folder?"


def printable(name: str) -> str:
    """A file name as UTF-8 text: other bytes are escaped."""
    return os.fsencode(name).decode(errors="backslashreplace")


def _files(root: Path, split: str, class_names: list[str], listing: Listing) -> Iterator[ImageFile]:
    """All files of a split, including those in subfolders of the class folders."""
    for label, name in enumerate(class_names):
        class_folder = root / split / name
        # The test split may lack a class.
        for path in listing.files(class_folder) if class_folder.exists() else ():
            status = path.stat() if path.exists() else path.lstat()
            yield ImageFile(str(path.relative_to(root)), label, status.st_size, status.st_mtime_ns)


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
