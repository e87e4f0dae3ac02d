"""Find the Parquet files of each split in a folder, laid out by prepare.py, the Hugging Face hub, Hive, or Spark."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import unquote

from pyarrow import fs

from vgg_ddp.flags import UsageError
from vgg_ddp.run.storage import Folder

TRAIN_NAMES = ("train", "training")
# In order of preference: a test split, or the validation split in its place.
TEST_NAMES = ("test", "testing", "validation", "valid", "val", "dev", "eval")
EXPECTED = "train.parquet or train-*.parquet, and test.parquet or test-*.parquet"
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic")
SHARD = re.compile(r"(?P<index>\d+)-of-(?P<total>\d+)(-[0-9a-f]+)?\.parquet$", re.IGNORECASE)
NAMES_SHOWN = 5
MAX_SUBFOLDERS = 100


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
    raise UsageError(f"--data {location} does not exist: expected auto, cifar10, sample, or a folder or URI.")


def _find(folder: Folder, location: str, entries: list[fs.FileInfo]) -> Layout:
    if layout := _layout(folder, location, "", entries):
        return layout
    # The repositories of the hub keep the files in a subfolder, such as data or plain_text.
    subfolders = [info.base_name for info in entries if info.type == fs.FileType.Directory][:MAX_SUBFOLDERS]
    layouts = {name: _layout(folder, location, f"{name}/", _entries(folder / name)) for name in subfolders}
    found = [name for name, layout in layouts.items() if layout]
    if len(found) > 1:
        raise UsageError(
            f"--data {location} contains several data sets, {_listed(found)}: name one of them, such as --data "
            f"{location.rstrip('/')}/{found[0]}."
        )
    if found and (layout := layouts[found[0]]):
        return layout
    raise UsageError(f"--data {location} has no Parquet files of a training split: {_what_is_there(folder, entries)}")


def _layout(folder: Folder, location: str, prefix: str, entries: list[fs.FileInfo]) -> Layout | None:
    """The layout of one folder (`prefix`, relative to the data set); None if it has no training split."""
    trains = [split for name in TRAIN_NAMES if (split := _split(folder, location, prefix, entries, name))]
    if not trains:
        return None
    if len(trains) > 1:
        raise UsageError(
            f"--data {location} has two training splits, {trains[0].files[0]} and {trains[1].files[0]}: keep one."
        )
    tests = tuple(split for name in TEST_NAMES if (split := _split(folder, location, prefix, entries, name)))
    if not tests:
        raise UsageError(
            f"--data {location} has a training split, but no test or validation split: expected {EXPECTED}. Images "
            "that are not split yet: prepare.py holds out a test split (--test-fraction)."
        )
    used = {file for split in (*trains, *tests) for file in split.files}
    resembles = tuple(f"{prefix}{info.base_name}" for info in entries if _resembles_split(info))
    return Layout(folder, trains[0], tests, tuple(name for name in resembles if name not in used))


def _split(folder: Folder, location: str, prefix: str, entries: list[fs.FileInfo], name: str) -> SplitFiles | None:
    """A split by its name, in any case: its files, or the files in its folder; None if there is neither."""
    files = [info.base_name for info in entries if info.type == fs.FileType.File and is_file_of(info.base_name, name)]
    folders = [
        info.base_name
        for info in entries
        if info.type == fs.FileType.Directory and info.base_name.lower() in (name, f"{name}.parquet", f"split={name}")
    ]
    inside = {sub: tuple(_files_below(folder, f"{prefix}{sub}")) for sub in folders}
    folders = [sub for sub in folders if inside[sub]]
    # Files whose names differ only in case, or files next to a folder, are different data of the same split.
    kinds = sorted({file[: len(name)] for file in files}) + [f"{sub}/" for sub in folders]
    if len(kinds) > 1:
        raise UsageError(f"--data {location} has the split {name} twice, as {_listed(kinds)}: keep one of them.")
    if not kinds:
        return None
    paths = tuple(f"{prefix}{file}" for file in files) or inside[folders[0]]
    require_all_shards(location, paths)
    return SplitFiles(name, paths)


def is_file_of(file: str, split: str) -> bool:
    """Whether a file is a split, or a part of one: train.parquet, train-*.parquet, train_0.parquet."""
    return bool(re.fullmatch(rf"{split}(-.*|[_.]?\d.*)?\.parquet", file, re.IGNORECASE))


def _resembles_split(info: fs.FileInfo) -> bool:
    name = info.base_name.lower()
    is_file = bool(info.type == fs.FileType.File)
    return is_file and name.endswith(".parquet") and name.startswith((*TRAIN_NAMES, *TEST_NAMES))


def _files_below(folder: Folder, name: str) -> list[str]:
    """The Parquet files in a split's folder, and in the folders of its partitions (Hive's label=0)."""
    files = []
    for info in _entries(folder / name):
        path = f"{name}/{info.base_name}"
        if info.type == fs.FileType.Directory:
            files += _files_below(folder, path) if "=" in info.base_name else []
        elif info.base_name.lower().endswith(".parquet"):
            files.append(path)
    return files


def partitions(file: str) -> dict[str, str]:
    """The columns that a file's path has in place of the file: {"label": "3"} for train/label=3/part-0.parquet."""
    parts = (part.partition("=") for part in file.split("/")[:-1] if "=" in part)
    return {unquote(name): unquote(value) for name, _, value in parts}


def require_all_shards(location: str, files: Sequence[str]) -> None:
    """Check that numbered files of a split are complete: all of 00000-of-00002 and 00001-of-00002, and nothing else.

    Raises:
        UsageError: naming the files that are missing, or that do not belong to the others.
    """
    shards = {file: match for file in files if (match := SHARD.search(file))}
    if not shards:
        return
    of_total = {int(match["total"]): file for file, match in reversed(shards.items())}
    different = [file for file in files if file not in shards] + [of_total[total] for total in sorted(of_total)]
    if len(different) > 1:
        raise UsageError(
            f"--data {location} has files of different data in one split, {_listed(different)}: keep those that belong "
            "together."
        )
    (total,) = of_total
    found: dict[int, str] = {}
    for file, match in shards.items():
        index = int(match["index"])
        if index >= total:
            raise UsageError(f"--data {location} has {file}, but files 0 to {total - 1} are complete: delete it.")
        if index in found:
            raise UsageError(f"--data {location} has file {index} twice, {found[index]} and {file}: keep one.")
        found[index] = file
    file, match = next(iter(shards.items()))
    names = [
        f"{file[: match.start('index')]}{index:0{len(match['index'])}}-of-{match['total']}.parquet"
        for index in range(total)
        if index not in found
    ]
    if names:
        raise UsageError(
            f"--data {location} is incomplete: {len(names)} of {total} files are missing: {_listed(names)}."
        )


def _entries(folder: Folder) -> list[fs.FileInfo]:
    """The files and folders in a folder, sorted by name; without hidden ones and those of systems, such as _SUCCESS."""
    found = folder.filesystem.get_file_info(fs.FileSelector(folder.path, allow_not_found=True))
    return sorted(
        (info for info in found if not info.base_name.startswith((".", "_"))), key=lambda info: info.base_name
    )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more


def _what_is_there(folder: Folder, entries: list[fs.FileInfo]) -> str:
    """What a folder without a training split contains, and what fits."""
    names = [f"{info.base_name}/" if info.type == fs.FileType.Directory else info.base_name for info in entries]
    if not names:
        return f"it is empty. Expected {EXPECTED}."
    if "cifar-10-batches-py/" in names:
        return f"it contains CIFAR-10. Use --data cifar10 --data-dir {folder}"
    if _has_images(folder, entries):
        return f"it contains images. Convert them first: python ray_app/prepare.py {folder} OUTPUT"
    return f"it contains {_listed(names)}. Expected {EXPECTED}."


def _has_images(folder: Folder, entries: list[fs.FileInfo], depth: int = 2) -> bool:
    """Whether a folder has images, or its first subfolders have them."""
    if any(info.base_name.lower().endswith(IMAGE_ENDINGS) for info in entries):
        return True
    subfolders = [info.base_name for info in entries if info.type == fs.FileType.Directory][:NAMES_SHOWN]
    return depth > 0 and any(_has_images(folder / name, _entries(folder / name), depth - 1) for name in subfolders)
