"""The files of a run folder, opened with libraries other than those that wrote them."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import nn

from vgg_ddp.run import curves, summary
from vgg_ddp.run import files as report
from vgg_ddp.run.files import COLUMNS, VALIDATION_COLUMNS, Row
from vgg_ddp.run.storage import Folder
from vgg_ddp.weights import model_file

MakeRows = Callable[[int], list[Row]]


def path(run: Folder, name: str) -> Path:
    return Path((run / name).path)


def test_config_round_trips(run: Folder) -> None:
    assert report.read_config(run) is None
    report.write_config(run, {"lr": 0.1, "run_name": None})
    assert report.read_config(run) == json.loads(path(run, "config.json").read_text()) == {"lr": 0.1, "run_name": None}


def test_metrics_are_a_table_with_one_row_per_epoch(run: Folder, make_rows: MakeRows) -> None:
    report.write_metrics(run, make_rows(3))
    header, *rows = csv.reader(io.StringIO(path(run, "metrics.csv").read_text()))
    # Those of the validation split would be empty.
    assert header == [name for name in COLUMNS if name not in VALIDATION_COLUMNS]
    assert {"epoch", "loss", "test_accuracy", "lr", "images_per_second"} <= set(header)
    assert [row[0] for row in rows] == ["1", "2", "3"]
    assert float(rows[1][header.index("test_accuracy")]) == make_rows(3)[1]["test_accuracy"]


def test_metrics_round_trip(run: Folder, make_rows: MakeRows) -> None:
    assert report.read_metrics(run) == []
    report.write_metrics(run, make_rows(3))
    assert report.read_metrics(run) == make_rows(3)


def test_metrics_written_again_replace_the_old_ones(run: Folder, make_rows: MakeRows) -> None:
    report.write_metrics(run, make_rows(3))
    report.write_metrics(run, make_rows(2))
    assert report.read_metrics(run) == make_rows(2)


def test_late_step_is_written_exactly(run: Folder, make_rows: MakeRows) -> None:
    rows = make_rows(1)
    rows[0]["step"] = 12_345_678
    report.write_metrics(run, rows)
    assert report.read_metrics(run)[0]["step"] == 12_345_678


def test_startup_round_trips(run: Folder) -> None:
    assert report.read_startup(run) == {}
    report.write_startup(run, {"command": 1.5, "first step": 9.25})
    assert report.read_startup(run) == {"command": 1.5, "first step": 9.25}


def test_time_of_an_epoch_is_kept_to_the_millisecond(run: Folder, make_rows: MakeRows) -> None:
    rows = make_rows(1)
    rows[0]["time"] = 1795642901.864
    report.write_metrics(run, rows)
    assert report.read_metrics(run)[0]["time"] == 1795642901.864


def test_progress_round_trips(run: Folder) -> None:
    assert report.read_progress(run) == {}
    report.write_progress(run, {"step": 3, "loss": 2.5})
    assert report.read_progress(run) == {"step": 3, "loss": 2.5}


@pytest.mark.parametrize("epochs", [1, 30])
def test_curves_are_plots_with_two_lines_each(run: Folder, make_rows: MakeRows, epochs: int) -> None:
    curves.write_curves(run, make_rows(epochs), "a title")
    with Image.open(path(run, "curves.png"), formats=("PNG",)) as picture:
        assert picture.width >= 800
        assert picture.height >= 300
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    # Matplotlib's first two colors, in both halves.
    for color in ((31, 119, 180), (255, 127, 14)):
        assert (pixels == color).all(axis=1).sum() > 20


def test_model_file_opens_with_plain_safetensors(run: Folder) -> None:
    tensors = {"a": torch.randn(3, 2, 4, 4).to(memory_format=torch.channels_last), "b": torch.tensor(7)}
    model = nn.Module()
    for name, tensor in tensors.items():
        model.register_buffer(name, tensor)
    preprocessing = {"image_size": 32, "mean": [1.5, 2.5, 3.5], "std": [4.0, 5.0, 6.0]}
    model_file.write_model(run, model, "fast", ("ant", "bee"), preprocessing)
    with safe_open(path(run, "model.safetensors"), framework="pt") as file:
        assert set(file.keys()) == {"a", "b"}
        for name, tensor in tensors.items():
            assert torch.equal(file.get_tensor(name), tensor)
        described = json.loads(file.metadata()[model_file.METADATA_KEY])
    assert described == {"architecture": "Module", "recipe": "fast", "class_names": ["ant", "bee"], **preprocessing}


def test_equal_models_give_equal_files(run: Folder) -> None:
    tensors = {name: torch.arange(3.0) for name in "abcdef"}
    contents = set()
    for names in ("abcdef", "fedcba"):
        model = nn.Module()
        for name in names:
            model.register_buffer(name, tensors[name])
        model_file.write_model(run, model, "fast", ("x",), {"mean": [0.0], "image_size": 32})
        contents.add(path(run, "model.safetensors").read_bytes())
    assert len(contents) == 1


def test_row_shows_percentages(make_rows: MakeRows) -> None:
    row = make_rows(1)[0] | {"epoch": 3.0, "train_accuracy": 0.5, "test_accuracy": 0.1234, "images_per_second": 1234.5}
    line = summary.format_row(row, 15)
    assert line.startswith("epoch  3/15 ")
    assert "train 50.00%" in line
    assert "test 12.34%" in line
    assert "1,234 images/s" in line


def test_summary_has_best_and_last_epoch(make_rows: MakeRows) -> None:
    rows = make_rows(3)
    for row, accuracy, speed, seconds in zip(
        rows, (0.5, 0.75, 0.625), (100.0, 300.0, 200.0), (3.0, 1.0, 2.0), strict=True
    ):
        row |= {"test_accuracy": accuracy, "images_per_second": speed, "seconds": seconds}
    text = summary.format_summary(rows)
    assert "62.50% (best 75.00%, epoch 2)" in text
    # 300 + 300 + 400 images in 6 s.
    assert "167" in text
    assert "6.0 s" in text
