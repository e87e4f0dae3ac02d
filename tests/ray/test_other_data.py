"""Runs on other people's data: test images without labels, and a folder that moves between two commands."""

import csv
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from support.command import SAMPLE, run_main

pytestmark = pytest.mark.slow


def test_run_without_test_labels_resumes_after_its_data_moved(tmp_path: Path) -> None:
    data, moved, other = tmp_path / "data", tmp_path / "moved", tmp_path / "other"
    for folder, first in ((data, 0), (other, 500)):
        folder.mkdir()
        for split, count in (("train", 120), ("test", 20)):
            table = pq.read_table(SAMPLE / f"{split}.parquet").slice(first, count)
            if split == "test":
                table = table.set_column(table.schema.get_field_index("label"), "label", pa.array(np.full(count, -1)))
            pq.write_table(table, folder / f"{split}.parquet")
    flags = ("--num-workers", 0, "--recipe", "classic", "--run-name", "run")
    first = run_main(*flags, "--data", "data", "--epochs", 1, cwd=tmp_path)
    assert first.returncode == 0 and first.stderr == "", first.stderr
    assert "120 training images (the test images have no labels: no test accuracy)" in first.stdout
    assert re.search(r"epoch 1/1 .* test +- ", first.stdout)
    assert re.search(r"test accuracy +-\n", first.stdout)
    with (tmp_path / "runs/run/metrics.csv").open() as file:
        assert [row["test_accuracy"] for row in csv.DictReader(file)] == ["nan"]
    data.rename(moved)
    resume = ("--resume", "run", "--epochs", 2)
    gone = run_main(*resume, cwd=tmp_path)
    assert gone.returncode == 2 and gone.stderr == (
        f"error: --data {data} does not exist: expected auto, cifar10, sample, or a folder or URI. If the data was "
        "moved, add --data with its new location.\n"
    )
    refused = run_main(*resume, "--data", other, cwd=tmp_path)
    assert refused.returncode == 2 and refused.stderr == (
        f"error: --data {other}: run run was trained on other images; use the data that it was started with, or "
        "another --run-name for a new run.\n"
    )
    for command in ((*resume, "--data", "moved"), ("--resume", "run", "--epochs", 3)):
        resumed = run_main(*command, cwd=tmp_path)
        assert resumed.returncode == 0 and "Resumed at step" in resumed.stdout, resumed.stderr
