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


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "Test"),
        ("TRAIN", "TEST"),
        ("Training", "Testing"),
        ("train", "validation"),
        ("Train", "val"),
        ("train", "Valid"),
        ("train", "dev"),
        ("train", "eval"),
        ("training_set", "test_set"),
        ("trainset", "testset"),
    ],
)
def test_folders_of_splits_are_recognized_by_their_names(tmp_path: Path, train: str, test: str) -> None:
    found = list_images(
        make(tmp_path, f"{train}/a/1.png", f"{train}/b/2.png", f"{test}/a/3.png", f"{test}/b/4.png"), 0.5
    )
    assert found.class_names == ("a", "b")
    assert labels_of(found.train) == {f"{train}/a/1.png": 0, f"{train}/b/2.png": 1}
    assert labels_of(found.test) == {f"{test}/a/3.png": 0, f"{test}/b/4.png": 1}
    assert found.notes == ()


def test_validation_images_are_left_out_if_there_is_a_test_split(tmp_path: Path) -> None:
    root = make(tmp_path, *(f"{split}/{name}/1.png" for split in ("train", "Val", "test", "meta") for name in "ab"))
    found = list_images(root, 0.5)
    assert set(labels_of(found.test)) == {"test/a/1.png", "test/b/1.png"}
    assert found.notes == ("used train and test; ignored Val and meta.",)


def test_validation_images_are_used_if_the_test_images_have_no_labels(tmp_path: Path) -> None:
    root = make(tmp_path, "train/a/1.png", "train/b/1.png", "val/a/1.png", "val/b/1.png", "test/1.png")
    found = list_images(root, 0.5)
    assert set(labels_of(found.test)) == {"val/a/1.png", "val/b/1.png"}
    assert found.notes == ("used train and val; ignored test.",)


@pytest.mark.parametrize(
    "names", [("train", "plane", "bus"), ("bullet train", "test tube", "c", "d", "e"), ("Test", "cat")]
)
def test_classes_may_have_names_of_splits(tmp_path: Path, names: tuple[str, ...]) -> None:
    found = list_images(make(tmp_path, *(f"{name}/{i}.png" for name in names for i in range(2))), 0.5)
    assert found.class_names == tuple(sorted(names))


def test_system_files_and_folders_are_skipped_and_counted(tmp_path: Path) -> None:
    images = [f"{name}/{i}.png" for name in "ab" for i in range(2)]
    files = ["a/.DS_Store", "b/.DS_Store", "a/Thumbs.db", "a/desktop.ini", "b/._1.png", "b/deep/._2.png"]
    folders = [".git", "__MACOSX", "lost+found", "#recycle", "$RECYCLE.BIN", "a/@eaDir", "b/.thumbnails"]
    found = list_images(make(tmp_path, *images, *files, *(f"{folder}/a/1.png" for folder in folders)), 0.5)
    assert found.class_names == ("a", "b")
    assert sorted([*labels_of(found.train), *labels_of(found.test)]) == images
    assert found.notes == (
        "skipped 7 hidden or system folder(s) (#recycle, $RECYCLE.BIN, .git and 4 more) and 6 hidden or system file(s) "
        "(.DS_Store, ._1.png, ._2.png and 2 more).",
    )


def test_images_beside_the_classes_are_pointed_out(tmp_path: Path) -> None:
    beside = ["z.png", "train/y.JPG", "train/labels.csv", "test/x.webp", "test/w.tiff", "README.md"]
    root = make(tmp_path, "train/a/1.png", "train/b/1.png", "test/a/1.png", "test/b/1.png", *beside)
    assert list_images(root, 0.5).notes == (
        f"ignored 1 image(s) in {root} that are not in a class folder, such as z.png.",
        f"ignored 1 image(s) in {root}/train that are not in a class folder, such as y.JPG.",
        f"ignored 2 image(s) in {root}/test that are not in a class folder, such as w.tiff.",
    )


def test_linked_class_is_read_and_links_that_lead_back_are_left_out(tmp_path: Path) -> None:
    make(tmp_path, "elsewhere/1.png", "elsewhere/2.png", "root/a/1.png", "root/a/2.png")
    root = tmp_path / "root"
    (root / "b").symlink_to(tmp_path / "elsewhere")
    (root / "loop").symlink_to(root)
    (root / "above").symlink_to(tmp_path)
    (root / "a" / "up").symlink_to("..")
    (root / "a" / "other").symlink_to(tmp_path / "elsewhere")
    (root / "itself").symlink_to("itself")
    found = list_images(root, 0.5)
    assert found.class_names == ("a", "b")
    assert len(found.train) + len(found.test) == 4
    assert found.notes == (f"skipped 4 linked folder(s): {root}/a/other, {root}/a/up, {root}/above and 1 more.",)


def test_classes_without_images_are_pointed_out(tmp_path: Path) -> None:
    root = make(tmp_path, "train/a/1.png", "train/b/1.png", "train/c/1.png", "test/a/1.png")
    (root / "train" / "d").mkdir()
    assert list_images(root, 0.5).notes == ("1 class(es) have no images: d.", "2 class(es) have no test images: b, c.")


def test_single_class_is_pointed_out(tmp_path: Path) -> None:
    root = make(tmp_path, "photos/cat/1.png", "photos/dog/2.png")
    assert list_images(root, 0.5).notes == (f"there is only one class, photos: is {root} the right folder?",)


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
        (["train/a/1.png", "Train/a/1.png", "test/a/1.png"], "has Train and train, which both name the training split"),
        (["train/a/1.png", "TRAINING/a/1.png"], "has TRAINING and train, but not both train and test"),
        (["train/a/1.png", "test/a/1.png", "testing/a/1.png"], "has test and testing, which both name the test split"),
        (["seg_train/a/1.png", "seg_test/a/1.png", "seg_pred/1.png"], "has seg_train and seg_test, which look like"),
        (["cat/train/1.png", "cat/test/1.png", "dog/1.png"], "/cat holds test and train: expected .*/train/cat and"),
        (["data/Train/a/1.png", "data/val/a/1.png"], "/data holds Train and val: give .*/data as the image folder"),
        (
            ["train/train/a/1.png", "test/test/a/1.png"],
            "/train has only the folder train: expected one folder per class",
        ),
        (
            ["train/cat.0.jpg", "train/dog.1.jpg", "test/1.jpg"],
            "2 images: expected one per class, as in .*/train/cat/cat.0",
        ),
        (["train/1.jpg", "test/1.jpg"], "1 images: expected one per class, as in .*/train/CLASS/1.jpg"),
        (["train/a/1.png", "train/b/1.png", "test/1.png"], "/test has no class folders, so its images have no labels"),
        (["train/a/1.png", "train/b/.x", "test/b/1.png"], "class b in .* has test images, but no training images"),
        (["__MACOSX/a/1.png", ".git/b/1.png"], "has no subfolders"),
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
