"""Folders of Parquet files as people have them, and what becomes of each: used, or refused in one line."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from support.parquet_tables import (
    TEST,
    TRAIN,
    Files,
    both,
    flat,
    in_hive,
    of_paths,
    placed,
    relabeled,
    table,
    twice,
    write_linked,
)

USED = f"used: {TRAIN} + {TEST} images"


@dataclass(frozen=True)
class Layout:
    """A folder of Parquet files.

    Attributes:
        what: for the table in the documentation.
        files: tables by their paths.
        outcome: as `described` in the test says; FOLDER stands for the folder.
        flags: --image-column and --label-column.
        prepare: writes other files.
    """

    what: str
    files: Files
    outcome: str = USED
    flags: tuple[str | None, str | None] = (None, None)
    options: dict[str, object] = field(default_factory=dict)
    prepare: Callable[[Path], None] | None = None

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        if self.prepare:
            self.prepare(folder)
        for name, made in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(made, folder / name, **self.options)


HASH = "1359597a978bc4fa"
SECRET = table(TEST, labels=[-1] * TEST)
KEEP = "keep only the files of one."
EXPECTED = "Expected train.parquet or train-*.parquet, and test.parquet or test-*.parquet."
NOT_INTEGERS = "expected integers 0, 1, 2, and so on."

LAYOUTS = (
    Layout("`train.parquet`, `test.parquet`", both()),
    Layout("`Train.parquet`, `TEST.parquet`", placed(["Train.parquet"], ["TEST.parquet"])),
    Layout(
        "`train-00000-of-00002.parquet`, ...",
        placed(["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"], ["test-00000-of-00001.parquet"]),
    ),
    Layout(
        "the hub: `data/train-00000-of-00001-<hash>.parquet`",
        placed([f"data/train-00000-of-00001-{HASH}.parquet"], [f"data/test-00000-of-00001-{HASH}.parquet"]),
    ),
    Layout("the hub: `plain_text/`", placed(["plain_text/train.parquet"], ["plain_text/test.parquet"])),
    Layout(
        "the hub: `default/train/0000.parquet`", placed(["default/train/0000.parquet"], ["default/test/0000.parquet"])
    ),
    Layout(
        "Spark: `train/part-00000-<id>.snappy.parquet`",
        placed([f"train/part-00000-{HASH}.snappy.parquet"], ["test/part-0.parquet"]),
    ),
    Layout(
        "Spark: `train.parquet/part-00000.parquet`",
        placed(["train.parquet/part-00000.parquet"], ["test.parquet/part-00000.parquet"]),
    ),
    Layout("Hive: `train/label=0/part-0.parquet`", in_hive("train", "test")),
    Layout("Hive: shards in each partition", in_hive("train", "test", "part-00000-of-00001")),
    Layout(
        "`train/a.parquet`, `train/more/b.parquet`",
        placed(["train/a.parquet", "train/more/b.parquet"], ["test/a.parquet"]),
    ),
    Layout("Hive: `split=train/label=0/part-0.parquet`", in_hive("split=train", "split=test")),
    Layout("`train_0.parquet`, `train_1.parquet`", placed(["train_0.parquet", "train_1.parquet"], ["test_0.parquet"])),
    Layout(
        "`validation.parquet` instead of `test.parquet`",
        placed(["train.parquet"], ["validation.parquet"]),
        f"{USED} of validation",
    ),
    Layout(
        "`valid-00000-of-00001.parquet`",
        placed(["train.parquet"], ["valid-00000-of-00001.parquet"]),
        f"{USED} of valid",
    ),
    Layout(
        "`test.parquet` with labels of -1, and `validation.parquet`",
        placed(["train.parquet"], ["validation.parquet"]) | {"test.parquet": SECRET},
        f"{USED} of validation",
    ),
    Layout(
        "`test.parquet` with labels of -1 alone",
        {"train.parquet": table(TRAIN), "test.parquet": SECRET},
        f"used: {TRAIN} + 0 images, no test accuracy",
    ),
    Layout(
        "`train_full.parquet` beside `train.parquet`",
        both() | {"train_full.parquet": table(TRAIN)},
        f"{USED}; a note names the other file",
    ),
    Layout("column `img`", both(image="img")),
    Layout("column `labels`", both(label="labels")),
    Layout(
        "columns `img`, `fine_label`, `coarse_label`",
        both(
            lambda made: made.append_column("coarse_label", pa.array([0] * len(made))), image="img", label="fine_label"
        ),
    ),
    Layout(
        "columns `photo` and `kind`, with the flags that name them",
        both(image="photo", label="kind"),
        flags=("photo", "kind"),
    ),
    Layout(
        "columns `photo` and `kind`",
        both(image="photo", label="kind"),
        "FOLDER/train.parquet has no column named image or img; it has photo (struct), kind (int64): perhaps "
        "--image-column photo.",
    ),
    Layout(
        "`--label-column` names no column",
        both(),
        "--label-column kind: FOLDER/train.parquet has no such column; it has image (struct), label (int64): perhaps "
        "--label-column label.",
        flags=(None, "kind"),
    ),
    Layout(
        "columns `image` and `img`",
        both(lambda made: made.append_column("img", made.column(0))),
        "FOLDER/train.parquet has columns image and img: name the right one with --image-column.",
    ),
    Layout("two columns `label`", both(twice(1)), "FOLDER/train.parquet has 2 columns named label: expected one."),
    Layout("two columns `image`", both(twice(0)), "FOLDER/train.parquet has 2 columns named image: expected one."),
    Layout("images as `binary`", both(flat(pa.binary()))),
    Layout("images as `large_binary`", both(flat(pa.large_binary()))),
    Layout("images as `binary_view`", both(flat(pa.binary_view()))),
    Layout("images as `dictionary<binary>`", both(flat(pa.dictionary(pa.int32(), pa.binary())))),
    Layout("paths of image files, relative to the Parquet file", both(of_paths), prepare=write_linked),
    Layout(
        "paths of image files that do not exist",
        both(of_paths),
        "row 0 of train.parquet has only the path of an image, img/8-0.png, which cannot be read: it does not exist.",
    ),
    Layout(
        "paths as `int64`",
        both(lambda made: made.set_column(0, "image", pa.array([{"path": row} for row in range(len(made))]))),
        "column image of FOLDER/train.parquet has type struct<path: int64>: expected binary, or a struct with a field "
        "bytes (binary) or path (string).",
    ),
    Layout(
        "Hive: `train/label=1e9/part-0.parquet`",
        {"train/label=1e9/part-0.parquet": table(TRAIN).drop_columns(["label"]), "test.parquet": table(TEST)},
        "FOLDER/train/label=1e9/part-0.parquet: label=1e9 in its path is not a label: expected 0, 1, 2, and so on.",
    ),
    Layout("labels as `int8`", relabeled(pa.int8())),
    Layout("labels as `uint64`", relabeled(pa.uint64())),
    Layout(
        "labels as `dictionary<int64>`",
        both(lambda made: made.set_column(1, "label", made["label"].dictionary_encode())),
    ),
    Layout(
        "labels as `double`",
        relabeled(pa.float64(), float),
        f"column label of FOLDER/train.parquet has type double: {NOT_INTEGERS}",
    ),
    Layout(
        "labels as `string`",
        relabeled(pa.string(), str),
        f"column label of FOLDER/train.parquet has type string: {NOT_INTEGERS}",
    ),
    Layout(
        "a label of 2^63",
        relabeled(pa.uint64(), lambda row: 2**63 if row == 3 else 0),
        f"row 3 of train.parquet has label {2**63}, which is too high.",
    ),
    Layout("zstd, pages of version 2", both(), options={"compression": "zstd", "data_page_version": "2.0"}),
    Layout("one row per row group", both(), options={"row_group_size": 1}),
    Layout(
        "two classes with the same name",
        both(names=("ant", "ant", "cow", "dog")),
        "train.parquet in FOLDER has two classes named ant: class names must differ.",
    ),
    Layout(
        "`train-00001-of-00003.parquet` alone",
        placed(["train-00001-of-00003.parquet"], ["test.parquet"]),
        "--data FOLDER is incomplete: 2 of 3 files are missing: train-00000-of-00003, train-00002-of-00003.",
    ),
    Layout(
        "`train-00001-of-00003.snappy.parquet` alone",
        placed(["train-00001-of-00003.snappy.parquet"], ["test.parquet"]),
        "--data FOLDER is incomplete: 2 of 3 files are missing: train-00000-of-00003, train-00002-of-00003.",
    ),
    Layout(
        "`train-00001-of-00002.parquet`, `train-00002-of-00002.parquet`",
        placed(["train-00001-of-00002.parquet", "train-00002-of-00002.parquet"], ["test.parquet"]),
        "--data FOLDER has train-00002-of-00002.parquet, but 2 files are numbered 0 to 1: rename it, or delete it if "
        "it does not belong to the others.",
    ),
    Layout(
        "a browser's copy, `train-00000-of-00001 (1).parquet`",
        placed(["train-00000-of-00001 (1).parquet", "train-00000-of-00001.parquet"], ["test.parquet"]),
        "--data FOLDER has files of different data sets in one split, train-00000-of-00001 (1).parquet, "
        f"train-00000-of-00001.parquet: {KEEP}",
    ),
    Layout(
        "two uploads, `-of-00001` and `-of-00002`",
        placed(["train-00000-of-00001.parquet", "train-00001-of-00002.parquet"], ["test.parquet"]),
        "--data FOLDER has files of different data sets in one split, train-00000-of-00001.parquet, "
        f"train-00001-of-00002.parquet: {KEEP}",
    ),
    Layout(
        "two shards 0 of 1 with different hashes",
        placed([f"train-00000-of-00001-{HASH}.parquet", "train-00000-of-00001-abcd.parquet"], ["test.parquet"]),
        f"--data FOLDER has file 0 twice, train-00000-of-00001-{HASH}.parquet and train-00000-of-00001-abcd.parquet: "
        "keep one.",
    ),
    Layout(
        "`train.parquet` and `Train.parquet`",
        placed(["Train.parquet", "train.parquet"], ["test.parquet"]),
        "--data FOLDER has the split train twice, as Train and train: keep one of them.",
    ),
    Layout(
        "`train.parquet` and `train/`",
        placed(["train.parquet", "train/0000.parquet"], ["test.parquet"]),
        "--data FOLDER has the split train twice, as train and train/: keep one of them.",
    ),
    Layout(
        "data sets in two subfolders",
        placed(["a/train.parquet", "b/train.parquet"], ["a/test.parquet", "b/test.parquet"]),
        "--data FOLDER contains several data sets, a, b: name one, such as --data FOLDER/a.",
    ),
    Layout(
        "a data set in one subfolder, and a training split in another",
        {"a/train.parquet": table(TRAIN), "b/train.parquet": table(TRAIN), "b/test.parquet": table(TEST)},
    ),
    Layout(
        "no test split",
        {"train.parquet": table(TRAIN)},
        "--data FOLDER has a training split, train.parquet, but no test or validation split: expected train.parquet or "
        "train-*.parquet, and test.parquet or test-*.parquet. If the images are not split yet, prepare.py "
        "holds out a test split (--test-fraction).",
    ),
    Layout(
        "other files",
        {"images.parquet": table(TRAIN)},
        f"--data FOLDER has no Parquet files of a training split: it contains images.parquet. {EXPECTED}",
    ),
    Layout(
        "image files",
        {},
        "--data FOLDER has no Parquet files of a training split: it contains images; convert them with: python "
        "ray_app/prepare.py FOLDER OUTPUT.",
        prepare=write_linked,
    ),
    Layout(
        "CIFAR-10 as downloaded",
        {},
        "--data FOLDER has no Parquet files of a training split: it contains CIFAR-10; use --data cifar10 --data-dir "
        "FOLDER.",
        prepare=lambda folder: (folder / "cifar-10-batches-py").mkdir(),
    ),
)


def documentation() -> str:
    """The table in docs/data.md."""
    rows = [f"| {layout.what} | {_quoted(layout.outcome)} |" for layout in LAYOUTS]
    return "\n".join(["| files | outcome |", "| --- | --- |", *rows])


def _quoted(outcome: str) -> str:
    if not outcome.startswith(USED.partition(":")[0]):
        return f"refused: `{outcome.replace('FOLDER', 'DATA')}`"
    rest = outcome.partition(" images")[2]
    split = rest.removeprefix(" of ") if rest.startswith(" of ") else ""
    return f"used, with `{split}` as the test split" if split else f"used{rest}"


if __name__ == "__main__":
    print(documentation())
