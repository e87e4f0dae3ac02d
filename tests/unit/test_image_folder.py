"""Which files of a folder become images of which class and split."""

import os
from pathlib import Path

import pytest

from vgg_ddp.flags import UsageError
from vgg_ddp.image_folder import ImageFile, list_images
from vgg_ddp.shards import SHARD_BYTES, plan_shards


def make(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x")
    return root


def labels_of(files: list[ImageFile]) -> dict[str, int]:
    return {file.path: file.label for file in files}


def test_folders_of_the_splits_are_taken_as_they_are(tmp_path: Path) -> None:
    root = make(tmp_path, "train/dog/1.png", "train/cat/deep/2.png", "train/fox/3.png", "val/fox/4.png")
    found = list_images(root, 0.5)
    assert found.class_names == ("cat", "dog", "fox")
    assert labels_of(found.train) == {"train/cat/deep/2.png": 0, "train/dog/1.png": 1, "train/fox/3.png": 2}
    assert labels_of(found.test) == {"val/fox/4.png": 2}


def test_each_class_gives_its_fraction_to_the_test_split(tmp_path: Path) -> None:
    counts = {"a": 100, "b": 10, "c": 2, "d": 1}
    root = make(tmp_path, *(f"{name}/{i}.png" for name, count in counts.items() for i in range(count)))
    found = list_images(root, 0.2)
    assert [sum(file.label == label for file in found.test) for label in range(4)] == [20, 2, 1, 0]
    assert len(found.train) + len(found.test) == 113
    assert not labels_of(found.train).keys() & labels_of(found.test).keys()
    assert list_images(root, 0.2) == found


def test_classes_are_mixed(tmp_path: Path) -> None:
    root = make(tmp_path, *(f"{name}/{i}.png" for name in "ab" for i in range(100)))
    labels = [file.label for file in list_images(root, 0.1).train]
    assert 30 < sum(labels[:90]) < 60


def test_files_of_file_managers_are_no_images(tmp_path: Path) -> None:
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


def test_names_that_are_no_text_are_escaped(tmp_path: Path) -> None:
    root = make(tmp_path, "é/1.png", "é/2.png")
    os.mkdir(os.fsencode(root) + b"/\xff")
    assert list_images(root, 0.5).class_names == ("é", "\\xff")


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        ([], "has no folders"),
        (["1.png"], "has no folders"),
        (["a/1.png"], "has no files for the test split"),
        (["train/a/1.png", "test/b/1.png"], "has the class b, which"),
        (["train/1.png", "test/1.png"], "has no folders"),
        (["train/a/1.png", "train/a/2.png"], "has train, but not both train and test"),
        (["test/a/1.png", "val/a/1.png"], "has test and val, but not both train and test"),
    ],
)
def test_folder_without_classes_or_files_is_refused(tmp_path: Path, paths: list[str], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        list_images(make(tmp_path, *paths), 0.5)


def test_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no folder"):
        list_images(tmp_path / "gone", 0.5)


def test_shards_hold_every_file_once_within_their_limits() -> None:
    sizes = [10, SHARD_BYTES, 1, 5, SHARD_BYTES - 5, 3, 3, 3, 3]
    files = [ImageFile(f"a/{i}", 0, size, 0) for i, size in enumerate(sizes)]
    shards = plan_shards("train", files, images_per_shard=3)
    assert [file for shard in shards for file in shard.files] == files
    assert [len(shard.files) for shard in shards] == [1, 1, 2, 2, 3]
    assert [shard.name for shard in shards][:2] == ["train-00000-of-00005.parquet", "train-00001-of-00005.parquet"]
