"""Find the Parquet files of each split in a folder, laid out by prepare.py, the Hugging Face hub, Hive, or Spark."""

import os
import posixpath
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from urllib.parse import unquote

from pyarrow import fs

from vgg_ddp.data.names import IMAGE_SUFFIXES, TEST_NAMES, TRAIN_NAMES, VALIDATION_NAMES, first_names
from vgg_ddp.flags import UsageError
from vgg_ddp.run.storage import Folder

EXPECTED = "train.parquet or train-*.parquet, and test.parquet or test-*.parquet"
# The end of a numbered file's name, with what some programs append: train-00000-of-00003-1359597a978bc4fa.parquet
SHARD = re.compile(r"(?P<index>\d+)(?P<of>[-_]of[-_])(?P<total>\d+)([-.][\w.-]*)?\.parquet$", re.IGNORECASE)
NAMES_SHOWN = 5
MAX_SUBFOLDERS = 100
DIRECTORY = fs.FileType.Directory


class MissingFolderError(UsageError):
    """The folder of a data set does not exist."""


@dataclass(frozen=True)
class SplitFiles:
    """The files of a split, in order: paths relative to the folder of the data set."""

    name: str
    files: tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """The files of a data set.

    Attributes:
        tests: splits to test on, best first; the next one is used if one has no labels.
        ignored: Parquet files that belong to no split, although their names resemble those of a split.
    """

    folder: Folder
    train: SplitFiles
    tests: tuple[SplitFiles, ...]
    ignored: tuple[str, ...] = ()


def find_layout(location: str) -> Layout:
    """Find the training split and the test splits in a folder (a path or URI), or in its only subfolder that has them.

    Raises:
        UsageError: if there is no such folder, or it lacks a split; the message says what the folder contains.
    """
    try:
        folder = Folder.at(location)
        entries = _entries(folder)
        if entries or folder.exists():
            return _find(folder, location, entries)
    except UsageError:
        raise
    except (OSError, ValueError) as error:
        hint = ": expected a folder, not a file" if isinstance(error, NotADirectoryError) else ""
        raise UsageError(f"--data {location} cannot be read{hint}: {error}") from error
    raise MissingFolderError(f"--data {location} does not exist: expected auto, cifar10, sample, or a folder or URI.")


def _find(folder: Folder, location: str, entries: list[fs.FileInfo]) -> Layout:
    layout = _layout(folder, location, "", entries)
    if layout is None:
        # The repositories of the hub keep the files in a subfolder, such as data or plain_text.
        names = [info.base_name for info in entries if info.type == DIRECTORY][:MAX_SUBFOLDERS]
        found = {name: _layout(folder, location, f"{name}/", _entries(folder / name)) for name in names}
        layouts = {name: made for name, made in found.items() if made}
        complete = {name: made for name, made in layouts.items() if made.tests} or layouts
        if len(complete) > 1:
            raise UsageError(
                f"--data {location} contains several data sets, {first_names(list(complete), NAMES_SHOWN)}: name one, "
                f"such as --data {location.rstrip('/')}/{min(complete)}."
            )
        layout = next(iter(complete.values()), None)
    if layout is None:
        there = _what_is_there(folder, location, entries)
        raise UsageError(f"--data {location} has no Parquet files of a training split: {there}.")
    if not layout.tests:
        raise UsageError(
            f"--data {location} has a training split, {layout.train.files[0]}, but no test or validation split: "
            f"expected {EXPECTED}. If the images are not split yet, prepare.py holds out a test split "
            "(--test-fraction)."
        )
    require_all_shards(location, layout.train.files)
    require_all_shards(location, layout.tests[0].files)
    return layout


def _layout(folder: Folder, location: str, prefix: str, entries: list[fs.FileInfo]) -> Layout | None:
    """The layout of one folder (`prefix`, relative to the data set); None if it has no training split."""

    def find_splits(names: Sequence[str]) -> tuple[SplitFiles, ...]:
        splits = (_split(folder, location, prefix, entries, name) for name in names)
        return tuple(split for split in splits if split)

    trains, tests = find_splits(TRAIN_NAMES), find_splits((*TEST_NAMES, *VALIDATION_NAMES))
    if not trains:
        return None
    if len(trains) > 1:
        raise UsageError(
            f"--data {location} has two training splits, {trains[0].files[0]} and {trains[1].files[0]}: keep one."
        )
    used = {file for split in (*trains, *tests) for file in split.files}
    resembling = (f"{prefix}{info.base_name}" for info in entries if _resembles_split(info))
    return Layout(folder, trains[0], tests, tuple(name for name in resembling if name not in used))


def _split(folder: Folder, location: str, prefix: str, entries: list[fs.FileInfo], name: str) -> SplitFiles | None:
    """A split by its name, in any case: its files, or the files in its folder; None if there is neither."""
    found_files = [info for info in entries if info.type != DIRECTORY and is_file_of(info.base_name, name)]
    for info in found_files:
        if info.type != fs.FileType.File:
            raise UsageError(f"--data {location} has {prefix}{info.base_name}, which is not a regular file.")
    files = [info.base_name for info in found_files]
    folder_names = (name, f"{name}.parquet", f"split={name}")
    folders = [info.base_name for info in entries if info.type == DIRECTORY and info.base_name.lower() in folder_names]
    inside = {sub: tuple(_files_below(folder, f"{prefix}{sub}")) for sub in folders}
    inside = {sub: found for sub, found in inside.items() if found}
    # Files whose names differ only in case, or files next to a folder, are different data of the same split.
    kinds = sorted({file[: len(name)] for file in files}) + [f"{sub}/" for sub in inside]
    if len(kinds) > 1:
        raise UsageError(f"--data {location} has the split {name} twice, as {' and '.join(kinds)}: keep one of them.")
    if not kinds:
        return None
    return SplitFiles(name, tuple(f"{prefix}{file}" for file in files) or next(iter(inside.values())))


def is_file_of(file: str, split: str) -> bool:
    """Whether a file is a split, or a part of one: train.parquet, train-*.parquet, train_0.parquet."""
    return bool(re.fullmatch(rf"{split}(-.*|[_.]?\d.*)?\.parquet", file, re.IGNORECASE))


def _resembles_split(info: fs.FileInfo) -> bool:
    name = info.base_name.lower()
    is_file = bool(info.type != DIRECTORY)
    return is_file and name.endswith(".parquet") and name.startswith((*TRAIN_NAMES, *TEST_NAMES, *VALIDATION_NAMES))


def _files_below(folder: Folder, name: str) -> list[str]:
    """The Parquet files in a split's folder and below, as in Hive's partitions (label=0); none among image files."""
    entries = _entries(folder / name)
    names = [info.base_name for info in entries]
    if not any(name.lower().endswith(".parquet") or "=" in name for name in names):
        return []
    files = []
    for info in entries:
        path = f"{name}/{info.base_name}"
        if info.type == DIRECTORY:
            files += _files_below(folder, path)
        elif info.base_name.lower().endswith(".parquet"):
            files.append(path)
    return files


def partitions(file: str) -> dict[str, str]:
    """The columns whose values are in a file's path: {"label": "3"} for train/label=3/part-0.parquet."""
    parts = (part.partition("=") for part in file.split("/")[:-1] if "=" in part)
    return {unquote(name): unquote(value) for name, _, value in parts}


def require_all_shards(location: str, files: Sequence[str]) -> None:
    """Check that the numbered files of a split are complete: 00000-of-00002 and 00001-of-00002, and nothing else.

    Raises:
        UsageError: naming the files that are missing, or that do not belong to the others.
    """
    for parent in dict.fromkeys(map(posixpath.dirname, files)):
        of_parent = [file for file in files if posixpath.dirname(file) == parent]
        shards = {file: match for file in of_parent if (match := SHARD.search(file))}
        if shards:
            _require_all(location, of_parent, shards)


def _require_all(location: str, files: Sequence[str], shards: dict[str, re.Match[str]]) -> None:
    of_total = {int(match["total"]): file for file, match in reversed(shards.items())}
    different = [file for file in files if file not in shards] + [of_total[total] for total in sorted(of_total)]
    if len(different) > 1:
        raise UsageError(
            f"--data {location} has files of different data sets in one split, {first_names(different, NAMES_SHOWN)}: "
            "keep only the files of one."
        )
    (total,) = of_total
    found: dict[int, str] = {}
    for file, match in shards.items():
        index = int(match["index"])
        if index >= total:
            raise UsageError(
                f"--data {location} has {file}, but {total} files are numbered 0 to {total - 1}: rename it, or delete "
                "it if it does not belong to the others."
            )
        if index in found:
            raise UsageError(f"--data {location} has file {index} twice, {found[index]} and {file}: keep one.")
        found[index] = file
    if len(found) < total:
        file, match = next(iter(shards.items()))
        start, width = file[: match.start("index")], len(match["index"])
        missing = (index for index in range(total) if index not in found)
        names = [f"{start}{index:0{width}}{match['of']}{match['total']}" for index in islice(missing, NAMES_SHOWN)]
        more = " and more" if total - len(found) > len(names) else ""
        raise UsageError(
            f"--data {location} is incomplete: {total - len(found)} of {total} files are missing: {', '.join(names)}"
            f"{more}."
        )


def _entries(folder: Folder) -> list[fs.FileInfo]:
    """The files and folders in a folder, sorted by name; without hidden ones and those of systems, such as _SUCCESS."""
    found = folder.filesystem.get_file_info(fs.FileSelector(folder.path, allow_not_found=True))
    return sorted(
        (info for info in found if not info.base_name.startswith((".", "_"))), key=lambda info: info.base_name
    )


def _what_is_there(folder: Folder, location: str, entries: list[fs.FileInfo]) -> str:
    """What a folder without a training split contains, and what fits."""
    names = [f"{info.base_name}/" if info.type == DIRECTORY else info.base_name for info in entries]
    if not names:
        return f"it is empty. Expected {EXPECTED}"
    path = shlex.quote(location)
    then = "" if folder.is_local else "download it first, then "
    if "cifar-10-batches-py/" in names:
        return f"it contains CIFAR-10; {then}use --data cifar10 --data-dir {path}"
    if _has_images(folder, entries):
        return f"it contains images; {then}convert them with: python ray_app/prepare.py {path} OUTPUT"
    # pyarrow does not list broken links.
    links = os.scandir(folder.path) if folder.is_local else ()
    broken = sorted(f"{link.name} (a broken link)" for link in links if link.is_symlink() and not os.path.exists(link))
    return f"it contains {first_names([*broken, *names], NAMES_SHOWN)}. Expected {EXPECTED}"


def _has_images(folder: Folder, entries: list[fs.FileInfo], depth: int = 2) -> bool:
    """Whether a folder has images, or its first subfolders have them."""
    if any(info.base_name.lower().endswith(IMAGE_SUFFIXES) for info in entries):
        return True
    subfolders = [info.base_name for info in entries if info.type == DIRECTORY][:NAMES_SHOWN]
    return depth > 0 and any(_has_images(folder / name, _entries(folder / name), depth - 1) for name in subfolders)
