"""Recognize the folders of the splits by their names: train, Training, TEST, val, dev, and so on."""

import re
from dataclasses import dataclass
from pathlib import Path

from vgg_ddp.data.names import TEST_NAMES, TRAIN_NAMES, VALIDATION_NAMES
from vgg_ddp.data.prepare.listing import Listing
from vgg_ddp.flags import UsageError

KINDS = {
    name: kind
    for kind, names in (("train", TRAIN_NAMES), ("test", TEST_NAMES), ("validation", VALIDATION_NAMES))
    for name in names
}
# A data set with more folders has classes whose names happen to contain such words.
MAX_LOOSELY_NAMED = 4


@dataclass(frozen=True)
class SplitFolders:
    """Names of the two folders that become the splits, and of the other folders beside them."""

    train: str
    test: str
    left_out: list[str]


def kind_of(name: str) -> str | None:
    """train, test, or validation, if a folder of this name means one of these: "Test", "training_set"."""
    return KINDS.get(name.lower().removesuffix("set").rstrip("_- "))


def find_splits(root: Path, folders: list[str], listing: Listing) -> SplitFolders | None:
    """The splits among the folders in `root`; None if the folders are classes.

    The test split is the folder for testing. Without one that has class folders, it is the folder for validation.

    Raises:
        UsageError: if the folders are splits, but not exactly one of each kind.
    """
    kinds: dict[str, list[str]] = {}
    for name in folders:
        if kind := kind_of(name):
            kinds.setdefault(kind, []).append(name)

    def has_classes(name: str) -> bool:
        return bool(listing.folders(root / name))

    is_complete = "train" in kinds and len(kinds) > 1
    if not is_complete and sum(map(len, kinds.values())) < len(folders):
        _refuse_loosely_named(root, folders)
        return None
    if not kinds:
        return None
    if not is_complete:
        raise UsageError(
            f"{root} has {' and '.join(folders)}, but not both train and test (or val): add the other, or give a "
            f"folder of classes, such as {root / folders[0]}, to split it at random."
        )
    candidates = [kind for kind in ("test", "validation") if kind in kinds]
    test_kind = next((kind for kind in candidates if any(map(has_classes, kinds[kind]))), candidates[0])
    train, test = (_only(root, kind, kinds[kind]) for kind in ("train", test_kind))
    return SplitFolders(train, test, [name for name in folders if name not in (train, test)])


def _only(root: Path, kind: str, names: list[str]) -> str:
    if len(names) > 1:
        split = {"train": "training"}.get(kind, kind)
        raise UsageError(f"{root} has {' and '.join(names)}, which both name the {split} split: keep one of them.")
    return names[0]


def _refuse_loosely_named(root: Path, folders: list[str]) -> None:
    """Refuse names such as seg_train and seg_test, which would become classes."""
    kinds = {kind: name for name in folders for word in re.findall("[a-z]+", name.lower()) if (kind := KINDS.get(word))}
    if len(folders) <= MAX_LOOSELY_NAMED and "train" in kinds and len(kinds) > 1:
        train, test = kinds["train"], kinds.get("test") or kinds["validation"]
        raise UsageError(
            f"{root} has {train} and {test}, which look like splits: rename them to train and test, or, if they are "
            "classes, to something else."
        )


def refuse_splits_in_classes(root: Path, class_names: list[str], listing: Listing) -> None:
    """Refuse class folders that hold folders of splits, such as cat/train and cat/test, or all classes.

    Raises:
        UsageError: naming a class folder, and what would fit.
    """
    for name in class_names:
        inner = [folder for folder in listing.folders(root / name) if kind_of(folder)]
        if len({kind_of(folder) for folder in inner}) > 1:
            held = f"the class folder {root / name} holds {' and '.join(inner)}"
            if len(class_names) == 1:
                raise UsageError(f"{held}: give {root / name} as the image folder.")
            raise UsageError(f"{held}: expected {root / 'train' / name} and {root / 'test' / name}.")
        if len(class_names) == 1 and kind_of(name):
            raise UsageError(f"{root} has only the folder {name}: expected one folder per class.")
