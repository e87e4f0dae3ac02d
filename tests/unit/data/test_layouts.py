"""Folders of Parquet files as people have them: each is used or refused, in memory and streamed alike."""

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from support.odd_layouts import LAYOUTS, Layout, documentation
from support.parquet_tables import png, table, write_linked
from vgg_ddp.data.columns import ColumnNames
from vgg_ddp.data.dataset import Dataset, load_dataset
from vgg_ddp.data.decode import decode_image
from vgg_ddp.data.digest import data_digest
from vgg_ddp.data.parquet import open_file
from vgg_ddp.data.source import find_source
from vgg_ddp.data.streamed_dataset import StreamedDataset, decode_rows, open_stream, select_rows
from vgg_ddp.flags import UsageError
from vgg_ddp.run.storage import Folder


def described(dataset: Dataset | StreamedDataset, notes: str) -> str:
    text = f"used: {dataset.num_train} + {dataset.num_test} images"
    if dataset.test_name not in ("test", None):
        text += f" of {dataset.test_name}"
    text += ", no test accuracy" if dataset.test_name is None else ""
    return text + ("; a note names the other file" if "NOTE: ignoring train_full.parquet" in notes else "")


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.what)
def test_layout_has_its_outcome_in_memory_and_streamed(
    layout: Layout, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "data"
    layout.write(folder)
    expected = layout.outcome.replace("FOLDER", str(folder))
    for read in (load_dataset, open_stream):
        try:
            dataset = read(find_source(str(folder), "unused", ColumnNames(*layout.flags)), 32)
        except UsageError as error:
            outcome = str(error)
            assert "\n" not in outcome
        else:
            outcome = described(dataset, capsys.readouterr().out)
            require_right_images(dataset)
        assert outcome == expected


def require_right_images(dataset: Dataset | StreamedDataset) -> None:
    """The training images in order; by class if the files are partitioned by class."""
    if isinstance(dataset, Dataset):
        images, labels = dataset.train.images, dataset.train.labels
    else:
        ranges = select_rows(dataset.train_groups, 0, dataset.num_train)
        blocks = [block for rows in ranges for block in decode_rows(dataset.folder, rows, 32, dataset.columns)]
        images, labels = (np.concatenate([block[name] for block in blocks]) for name in ("image", "label"))
    order = sorted(range(8), key=lambda row: row % 4) if labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3] else range(8)
    assert np.array_equal(images, [decode_image(png(row), 32) for row in order])
    assert labels.tolist() == [row % 4 for row in order]


def test_batches_of_large_images_have_few_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pyarrow cannot return more than 2 GiB of nested binary data at once."""
    LAYOUTS[0].write(tmp_path)
    # Room for two images of 32 x 32 random pixels.
    monkeypatch.setattr("vgg_ddp.data.parquet.BYTES_PER_BATCH", 3 * len(png(0)))
    with open_file(Folder.at(str(tmp_path)), "train.parquet", ColumnNames()) as parquet:
        batches = list(parquet.batches([0]))
    assert [(rows.first, len(rows)) for rows in batches] == [(0, 2), (2, 2), (4, 2), (6, 2)]
    assert np.concatenate([rows.labels for rows in batches]).tolist() == [0, 1, 2, 3] * 2
    require_right_images(load_dataset(find_source(str(tmp_path), ""), 32))


def test_batches_span_small_row_groups(tmp_path: Path) -> None:
    """Otherwise, each thread would get a few images at a time."""
    Layout("", LAYOUTS[0].files, options={"row_group_size": 1}).write(tmp_path)
    with open_file(Folder.at(str(tmp_path)), "train.parquet", ColumnNames()) as parquet:
        assert [(rows.first, len(rows)) for rows in parquet.batches(range(8))] == [(0, 8)]
        assert [(rows.first, len(rows)) for rows in parquet.batches(range(3, 5))] == [(3, 2)]


def test_unused_incomplete_split_does_not_matter_but_a_used_one_does(tmp_path: Path) -> None:
    part = {"validation-00001-of-00002.parquet": LAYOUTS[0].files["test.parquet"]}
    Layout("", LAYOUTS[0].files | part).write(tmp_path / "labeled")
    load_dataset(find_source(str(tmp_path / "labeled"), ""), 32)
    withheld = next(layout for layout in LAYOUTS if layout.outcome.endswith("no test accuracy"))
    Layout("", withheld.files | part).write(tmp_path / "withheld")
    with pytest.raises(UsageError, match="1 of 2 files are missing: validation-00000-of-00002"):
        load_dataset(find_source(str(tmp_path / "withheld"), ""), 32)


def test_column_flags_apply_only_to_parquet_files() -> None:
    with pytest.raises(UsageError, match="--data sample: --image-column and --label-column apply only to"):
        find_source("sample", "", ColumnNames(image="photo"))


def test_labels_withheld_in_some_row_groups_only_are_reported(tmp_path: Path) -> None:
    for name, labels in (("first", [-1, -1, 0, 1]), ("last", [0, 1, -1, -1])):
        files = LAYOUTS[0].files | {"test.parquet": table(4, labels=labels)}
        Layout(name, files, options={"row_group_size": 2}).write(tmp_path / name)
        for read in (load_dataset, open_stream):
            with pytest.raises(UsageError, match=r"label -1 .* is out of range: expected 0 to 3"):
                read(find_source(str(tmp_path / name), ""), 32)


def test_training_split_without_labels_is_refused(tmp_path: Path) -> None:
    files = {f"{split}.parquet": table(4, labels=[-1] * 4, names=None) for split in ("train", "test")}
    Layout("", files).write(tmp_path)
    for read in (load_dataset, open_stream):
        with pytest.raises(UsageError, match=r"the training split of .* has no labels"):
            read(find_source(str(tmp_path), ""), 32)


def test_paths_are_not_read_if_there_are_images(tmp_path: Path) -> None:
    """Some writers store file names that are not UTF-8."""

    def odd_paths(made: pa.Table) -> pa.Table:
        content = pa.array([cell["bytes"] for cell in made["image"].to_pylist()])
        paths = pa.array([b"\xff"] * len(made)).view(pa.string())
        return made.set_column(0, "image", pa.StructArray.from_arrays([content, paths], ["bytes", "path"]))

    Layout("", {name: odd_paths(made) for name, made in LAYOUTS[0].files.items()}).write(tmp_path)
    require_right_images(load_dataset(find_source(str(tmp_path), ""), 32))


@pytest.mark.parametrize("names", [{"0": "x", "1": "y"}, "abcd", ["a", None, "c", "d"], ["", "b", "c", "d"]])
def test_invalid_class_names_in_the_metadata_are_ignored(names: object, tmp_path: Path) -> None:
    metadata = {"huggingface": json.dumps({"info": {"features": {"label": {"names": names}}}})}
    Layout("", {name: made.replace_schema_metadata(metadata) for name, made in LAYOUTS[0].files.items()}).write(
        tmp_path
    )
    assert load_dataset(find_source(str(tmp_path), ""), 32).class_names == ("0", "1", "2", "3")


@pytest.mark.parametrize("kind", ["broken link", "pipe"])
def test_file_that_cannot_be_read_is_named(kind: str, tmp_path: Path) -> None:
    LAYOUTS[0].write(tmp_path)
    (tmp_path / "train.parquet").unlink()
    if kind == "pipe":
        os.mkfifo(tmp_path / "train.parquet")
    else:
        (tmp_path / "train.parquet").symlink_to("nowhere")
    expected = {
        "broken link": r"it contains train.parquet \(a broken link\), test.parquet",
        "pipe": "has train.parquet, which is not a regular file",
    }
    with pytest.raises(UsageError, match=expected[kind]):
        find_source(str(tmp_path), "")


def test_linked_pipe_is_refused(tmp_path: Path) -> None:
    linked = next(layout for layout in LAYOUTS if layout.prepare is write_linked)
    linked.write(tmp_path)
    (tmp_path / "img/8-3.png").unlink()
    os.mkfifo(tmp_path / "img/8-3.png")
    with pytest.raises(UsageError, match=r"img/8-3.png, which cannot be read: it is not a regular file"):
        load_dataset(find_source(str(tmp_path), ""), 32)


def test_documentation_lists_the_layouts() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs/data.md").read_text()
    assert documentation() in page, "copy what `python -m support.odd_layouts` prints, in tests, to docs/data.md"


def test_digest_survives_a_move_and_notices_other_images(tmp_path: Path) -> None:
    plain = LAYOUTS[0]
    plain.write(tmp_path / "a")
    digest = data_digest(find_source(str(tmp_path / "a"), ""))
    (tmp_path / "a").rename(tmp_path / "b")
    assert data_digest(find_source(str(tmp_path / "b"), "")) == digest
    # A split that is not used.
    Layout("", {"validation.parquet": plain.files["test.parquet"]}).write(tmp_path / "b")
    assert data_digest(find_source(str(tmp_path / "b"), "")) == digest
    train = plain.files["train.parquet"]
    others = {
        "other order": train.take([1, 0, *range(2, 8)]),
        "other label": train.set_column(1, "label", [[1, *train["label"].to_pylist()[1:]]]),
        "fewer": train.slice(1),
    }
    for name, changed in others.items():
        Layout(name, plain.files | {"train.parquet": changed}).write(tmp_path / name)
        assert data_digest(find_source(str(tmp_path / name), "")) != digest, name


def test_absolute_paths_of_images_are_read(tmp_path: Path) -> None:
    """As `datasets` stores images that it does not embed."""
    linked = next(layout for layout in LAYOUTS if layout.prepare is write_linked)
    linked.write(tmp_path)
    moved = tmp_path / "elsewhere"
    for split in ("train", "test"):
        made = linked.files[f"{split}.parquet"]
        cells = [cell | {"path": str(tmp_path / cell["path"])} for cell in made["image"].to_pylist()]
        Layout(split, {f"{split}.parquet": made.set_column(0, "image", [cells])}).write(moved)
    dataset = load_dataset(find_source(str(moved), ""), 32)
    require_right_images(dataset)
