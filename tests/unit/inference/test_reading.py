"""Find and read the images of --images, and write --output; without Ray."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from vgg_ddp.data.columns import ColumnNames
from vgg_ddp.flags import UsageError
from vgg_ddp.inference.image_set import FileChunk, RowChunk, find_images
from vgg_ddp.inference.output import SCHEMA, Output
from vgg_ddp.inference.reading import REFUSED, Reader
from vgg_ddp.run.storage import Folder

CLASSES = ("ant", "bee")
Pixels = npt.NDArray[np.uint8]


def reader(folder: Path) -> Reader:
    return Reader(Folder.at(str(folder)), ColumnNames(), 32)


def test_files_are_listed_recursively_in_order_without_hidden_ones(tmp_path: Path) -> None:
    for name in ("b.png", "a/2.jpg", "a/10.jpg", ".hidden/x.png", "a/.x.png", "Thumbs.db", "c"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    images = find_images(str(tmp_path), ColumnNames(), 32)
    assert images.chunks == [FileChunk(("a/10.jpg", "a/2.jpg", "b.png", "c"))]
    assert images.count == 4
    (note,) = images.notes
    assert "1 hidden or system folder(s) (.hidden)" in note and "2 hidden or system file(s)" in note


def test_chunks_cover_every_row_once_and_are_few_for_a_large_row_group(tmp_path: Path) -> None:
    cells = pa.array([b""] * 6000)
    pq.write_table(pa.table({"image": cells}), tmp_path / "b.parquet")
    pq.write_table(pa.table({"image": cells[:700]}), tmp_path / "a.parquet", row_group_size=600)
    images = find_images(str(tmp_path), ColumnNames(), 32)
    covered = [
        (chunk.file, chunk.row_group, row)
        for chunk in images.chunks
        if isinstance(chunk, RowChunk)
        for row in range(chunk.start, chunk.stop)
    ]
    groups = (("a.parquet", 0, 600), ("a.parquet", 1, 100), ("b.parquet", 0, 6000))
    assert covered == [(file, group, row) for file, group, rows in groups for row in range(rows)]
    assert images.count == 6700
    assert sum(isinstance(chunk, RowChunk) and chunk.file == "b.parquet" for chunk in images.chunks) == 16


def test_large_images_make_small_chunks(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [b""] * 20}), tmp_path / "a.parquet")
    assert len(find_images(str(tmp_path), ColumnNames(), 1024).chunks) == 4


def test_each_row_of_a_chunk_is_read_once(tmp_path: Path, encode: Callable[..., bytes]) -> None:
    # Each image shows its row.
    cells = [encode(np.full((32, 32, 3), row, np.uint8)) for row in range(30)]
    pq.write_table(pa.table({"image": cells}), tmp_path / "a.parquet", row_group_size=20)
    for chunk, rows in (
        (RowChunk("a.parquet", 0, 7, 19), range(7, 19)),
        (RowChunk("a.parquet", 1, 0, 4), range(20, 24)),
    ):
        batches = list(reader(tmp_path).read(chunk))
        assert [row for batch in batches for row in batch["row"]] == list(rows)
        assert [image[0, 0, 0] for batch in batches for image in batch["image"]] == list(rows)


def test_files_that_cannot_be_read_have_a_reason_and_the_others_their_pixels(
    tmp_path: Path, random_pixels: Pixels, encode: Callable[..., bytes]
) -> None:
    (tmp_path / "a.webp").write_bytes(encode(random_pixels[0], "PNG"))
    (tmp_path / "b.png").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "none")
    latin = os.fsdecode(b"\xe4.png")
    (tmp_path / latin).write_bytes(encode(random_pixels[1]))
    names = ("a.webp", "b.png", "gone.png", "pipe.png", "link.png", latin)
    (batch,) = reader(tmp_path).read(FileChunk(names))
    missing = "it does not exist"
    assert batch["error"].tolist() == ["", "empty file", missing, "not a regular file", missing, ""]
    assert batch["path"].tolist() == [*names[:5], "\\xe4.png"]
    assert (batch["image"][0] == random_pixels[0]).all() and (batch["image"][5] == random_pixels[1]).all()
    assert not batch["image"][1:5].any()


def test_machine_without_the_folder_and_damaged_parquet_file_end_the_job(tmp_path: Path) -> None:
    (batch,) = reader(tmp_path / "none").read(FileChunk(("a.png",)))
    assert batch["row"] == [REFUSED] and "use a folder that all machines share" in batch["error"][0]
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    (batch,) = reader(tmp_path).read(RowChunk("a.parquet", 0, 0, 1))
    assert batch["row"] == [REFUSED] and "a.parquet cannot be read as Parquet" in batch["error"][0]


def test_output_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    output = Output.at(str(tmp_path / "new" / "predictions.parquet"))
    output.require_writable()
    row = {"path": "a", "row": None, "class": "ant", "probability": 1.0, "probabilities": [1.0, 0.0], "error": None}

    def tables(fails: bool) -> Iterator[pa.Table]:
        for _ in range(3):
            yield pa.Table.from_pylist([row] * 6000, SCHEMA)
            assert list((tmp_path / "new").iterdir()) == []
        if fails:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        output.write(tables(fails=True), CLASSES)
    assert list((tmp_path / "new").iterdir()) == []
    output.write(tables(fails=False), CLASSES)
    written = pq.read_table(tmp_path / "new" / "predictions.parquet")
    assert written.to_pylist() == [row] * 18_000
    assert json.loads(written.schema.metadata[b"classes"]) == ["ant", "bee"]


@pytest.mark.parametrize("is_local", [True, False])
def test_file_that_appeared_meanwhile_is_not_overwritten(tmp_path: Path, is_local: bool) -> None:
    output = Output.at(str(tmp_path / "predictions.parquet"))
    if not is_local:
        # Any other filesystem than that of the disk.
        output = replace(output, folder=Folder(fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()), ""))

    def tables() -> Iterator[pa.Table]:
        yield SCHEMA.empty_table()
        (tmp_path / "predictions.parquet").write_text("of another process")

    with pytest.raises(UsageError, match=r"predictions.parquet exists already: name another file, or delete it\."):
        output.write(tables(), CLASSES)
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.parquet"]
    assert (tmp_path / "predictions.parquet").read_text() == "of another process"


def test_folder_that_cannot_be_written_is_named_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for location in (tmp_path / "file" / "a.parquet", tmp_path / "file" / "b" / "a.parquet"):
        with pytest.raises(UsageError) as caught:
            Output.at(str(location)).require_writable()
        assert str(caught.value) == f"--output {location} cannot be written: Not a directory."
