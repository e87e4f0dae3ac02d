"""Build small Parquet tables of images in many variants."""

import io
import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from support.command import SAMPLE

CLASSES = ("ant", "bee", "cow", "dog")
TRAIN, TEST = 8, 4
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
Files = dict[str, pa.Table]


def write_sample_in_row_groups(folder: Path, *files: tuple[int, int]) -> Path:
    """Write training images of the sample to files, each given by its rows and row group size, and 30 test images."""
    train, first = pq.read_table(SAMPLE / "train.parquet"), 0
    for index, (rows, row_group_size) in enumerate(files):
        pq.write_table(train.slice(first, rows), folder / f"train-{index}.parquet", row_group_size=row_group_size)
        first += rows
    pq.write_table(pq.read_table(SAMPLE / "test.parquet").slice(0, 30), folder / "test.parquet")
    return folder


@cache
def png(number: int) -> bytes:
    """An image of its own for each number."""
    pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def table(
    count: int,
    image: str = "image",
    label: str = "label",
    labels: Sequence[object] | None = None,
    kind: pa.DataType | None = None,
    names: Sequence[str] | None = CLASSES,
) -> pa.Table:
    """Images and labels; equal counts give equal images."""
    first = 0 if count == TRAIN else 100
    images = pa.array([{"bytes": png(first + row), "path": f"{row}.png"} for row in range(count)], STRUCT)
    column = pa.array([row % 4 for row in range(count)] if labels is None else labels, kind)
    made = pa.table({image: images, label: column})
    if names is None:
        return made
    features = {image: {"_type": "Image"}, label: {"names": list(names), "_type": "ClassLabel"}}
    return made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def flat(kind: pa.DataType) -> Callable[[pa.Table], pa.Table]:
    """Store the images without a struct, in a column of this type."""

    def change(made: pa.Table) -> pa.Table:
        content = [cell["bytes"] for cell in made["image"].to_pylist()]
        column = pa.array(content).dictionary_encode() if pa.types.is_dictionary(kind) else pa.array(content, kind)
        return made.set_column(0, "image", column)

    return change


def of_paths(made: pa.Table) -> pa.Table:
    """Store only the paths of the images, in the folder img beside the files."""
    paths = [{"bytes": None, "path": f"img/{len(made)}-{row}.png"} for row in range(len(made))]
    return made.set_column(0, "image", pa.array(paths, STRUCT))


def write_linked(folder: Path) -> None:
    """Write the image files that `of_paths` names."""
    (folder / "img").mkdir(parents=True)
    for count, first in ((TRAIN, 0), (TEST, 100)):
        for row in range(count):
            (folder / "img" / f"{count}-{row}.png").write_bytes(png(first + row))


def both(change: Callable[[pa.Table], pa.Table] = lambda made: made, **settings: object) -> Files:
    """Both splits, one file each."""
    tables = {"train.parquet": table(TRAIN, **settings), "test.parquet": table(TEST, **settings)}  # type: ignore[arg-type]
    return {name: change(made) for name, made in tables.items()}


def placed(train: Sequence[str], test: Sequence[str]) -> Files:
    """The training images divided among files, and the test images."""
    part = TRAIN // len(train)
    files = {name: table(TRAIN).slice(index * part, part) for index, name in enumerate(train)}
    rest = TEST // max(1, len(test))
    return files | {name: table(TEST).slice(index * rest, rest) for index, name in enumerate(test)}


def relabeled(kind: pa.DataType, labels: Callable[[int], object] = lambda row: row % 4) -> Files:
    """Both splits with labels of another type, without class names."""
    return {
        f"{split}.parquet": table(count, labels=[labels(row) for row in range(count)], kind=kind, names=None)
        for split, count in (("train", TRAIN), ("test", TEST))
    }


def twice(column: int) -> Callable[[pa.Table], pa.Table]:
    """Repeat a column."""

    def change(made: pa.Table) -> pa.Table:
        columns = [*made.columns, made.column(column)]
        return pa.Table.from_arrays(columns, [*made.column_names, made.column_names[column]])

    return change


def hive(made: pa.Table, name: str) -> Files:
    """The images of a table by class, without their labels."""
    labels = made["label"].to_numpy()
    return {
        f"label={label}/{name}.parquet": made.filter(pa.array(labels == label)).drop_columns(["label"])
        for label in range(4)
    }


def in_hive(train: str, test: str, name: str = "part-0") -> Files:
    """Both splits by class, in folders of these names."""
    files = {f"{train}/{path}": made for path, made in hive(table(TRAIN), name).items()}
    return files | {f"{test}/{path}": made for path, made in hive(table(TEST), name).items()}
