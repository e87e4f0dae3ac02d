"""A part of the bundled sample, for runs that have to be short."""

from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.program import ROOT

SAMPLE = ROOT / "ray_app" / "sample"


def write_small_data(folder: Path, choose: Callable[[str, int], Sequence[int]]) -> Path:
    """Write some images of both splits to a new folder, and return it.

    `choose` maps the name of a split and its number of images to the positions of those to take.
    """
    import pyarrow.parquet as pq

    folder.mkdir(parents=True)
    for split in ("train", "test"):
        table = pq.read_table(SAMPLE / f"{split}.parquet")
        pq.write_table(table.take(list(choose(split, len(table)))), folder / f"{split}.parquet")
    return folder
