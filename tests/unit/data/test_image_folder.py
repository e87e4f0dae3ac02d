"""Class and split of each file in an image folder."""

import os
from pathlib import Path

import pytest

from vgg_ddp.data.prepare.image_folder import ImageFile, list_images
from vgg_ddp.data.prepare.shards import SHARD_BYTES, plan_shards
from vgg_ddp.flags import UsageError


def make(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x")
    return root


def labels_of(files: list[ImageFile]) -> dict[str, int]:
    return {file.path: file.label for file in files}


def test_folder_with_splits_keeps_them(tmp_path: Path) -> None:
    root = make(tmp_path, "train/dog/1.png", "train/cat/deep/2.png", "train/fox/3.png", "val/fox/4.png")
    found = list_images(root, 0.5)
    assert found.class_names == ("cat", "dog", "fox")
    assert labels_of(found.train) == {"train/cat/deep/2.png": 0, "train/dog/1.png": 1, "train/fox/3.png": 2}
    assert labels_of(found.test) == {"val/fox/4.png": 2}


def test_test_split_gets_its_fraction_of_each_class(tmp_path: Path) -> None:
    counts = {"a": 100, "b": 10, "c": 2, "d": 1}
    root = make(tmp_path, *(f"{name}/{i}.png" for name, count in counts.items() for i in range(count)))
    found = list_images(root, 0.2)
    assert [sum(file.label == label for file in found.test) for label in range(4)] == [20, 2, 1, 0]
    assert len(found.train) + len(found.test) == 113
    assert not labels_of(found.train).keys() & labels_of(found.test).keys()
    assert list_images(root, 0.2) == found


def test_classes_are_shuffled(tmp_path: Path) -> None:
    root = make(tmp_path, *(f"{name}/{i}.png" for name in "ab" for i in range(100)))
    labels = [file.label for file in list_images(root, 0.1).train]
    assert 30 < sum(labels[:90]) < 60


def test_file_manager_files_are_ignored(tmp_path: Path) -> None:
    root = make(tmp_path, "a/1.png", "a/2.png", "a/.DS_Store", "a/Thumbs.db", ".hidden/1.png")
    found = list_images(root, 0.5)
    assert found.class_names == ("a",)
    assert len(found.train) + len(found.test) == 2


def test_empty_class_keeps_its_label(tmp_path: Path) -> None:
    root = make(tmp_path, "a/1.png", "a/2.png", "c/1.png", "c/2.png")
    (root / "b").mkdir()
    found = list_images(root, 0.5)
    assert found.class_names == ("a", "b", "c")
    assert {file.label for file in found.train} == {0, 2}


def test_names_that_are_not_utf8_are_escaped(tmp_path: Path) -> None:
    root = make(tmp_path, "é/1.png", "é/2.png")
    os.mkdir(os.fsencode(root) + b"/\xff")
    assert list_images(root, 0.5).class_names == ("é", "\\xff")


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        ([], "has no subfolders"),
        (["1.png"], "has no subfolders"),
        (["a/1.png"], "has no test images in its 1 class folder"),
        (["train/a/1.png", "test/b/1.png"], "has class b, but"),
        (["train/1.png", "test/1.png"], "has no subfolders"),
        (["train/a/1.png", "train/a/2.png"], "has train, but not both train and test"),
        (["test/a/1.png", "val/a/1.png"], "has test and val, but not both train and test"),
    ],
)
def test_folder_without_classes_or_files_is_refused(tmp_path: Path, paths: list[str], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        list_images(make(tmp_path, *paths), 0.5)


def test_path_that_is_not_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a folder: expected one subfolder per class"):
        list_images(tmp_path / "gone", 0.5)


def test_shards_contain_every_file_once_and_respect_the_limits() -> None:
    sizes = [10, SHARD_BYTES, 1, 5, SHARD_BYTES - 5, 3, 3, 3, 3]
    files = [ImageFile(f"a/{i}", 0, size, 0) for i, size in enumerate(sizes)]
    shards = plan_shards("train", files, images_per_shard=3)
    assert [file for shard in shards for file in shard.files] == files
    assert [len(shard.files) for shard in shards] == [1, 1, 2, 2, 3]
    assert [shard.name for shard in shards][:2] == ["train-00000-of-00005.parquet", "train-00001-of-00005.parquet"]
