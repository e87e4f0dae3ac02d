"""The small files of a run folder: config.json, metrics.csv, startup.json, progress.json; the names of the others."""

import csv
import io
import json
import math
from collections.abc import Sequence
from typing import Any

from vgg_ddp.run.notes import print_note_once
from vgg_ddp.run.storage import Folder

CONFIG_FILE = "config.json"
METRICS_FILE = "metrics.csv"
CURVES_FILE = "curves.png"
STARTUP_FILE = "startup.json"
PROGRESS_FILE = "progress.json"
PROFILE_FILE = "profile.txt"
SWEEP_FILE = "sweep.json"
TRACE_FILE = "trace.json.gz"
MODEL_FILE = "model.safetensors"
COLUMNS = (
    "epoch",
    "step",
    "loss",
    "train_accuracy",
    "validation_loss",
    "validation_accuracy",
    "test_loss",
    "test_accuracy",
    "lr",
    "images_per_second",
    "seconds",
    "time",
)
# Only in the files of runs with a validation split.
VALIDATION_COLUMNS = ("validation_loss", "validation_accuracy")
TEST_COLUMNS = ("test_loss", "test_accuracy")
EVALUATED = (*VALIDATION_COLUMNS, *TEST_COLUMNS)
# These may be nan or infinite: a test split may have no labels, for example.
MAY_BE_NAN = ("loss", "train_accuracy", *EVALUATED)
DIGITS = {"time": 13}
Row = dict[str, float]
"""The metrics of one epoch. Losses and accuracies are means over all ranks, seconds exclude evaluation, and time is the
end of the epoch in seconds since 1970. What was not evaluated is nan: with a validation split, only the epoch whose
weights the run keeps has test results, once the run is finished."""


def write_config(run: Folder, config: dict[str, Any]) -> None:
    run.write(CONFIG_FILE, (json.dumps(config, indent=2) + "\n").encode())


def read_config(run: Folder) -> dict[str, Any] | None:
    """The settings of a run, or None if the run does not exist.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is not a JSON object.
    """
    if not run.exists(CONFIG_FILE):
        return None
    config = json.loads(run.read(CONFIG_FILE))
    if not isinstance(config, dict):
        raise ValueError(f"{run / CONFIG_FILE} does not contain settings")
    return config


def has_validation(rows: Sequence[Row]) -> bool:
    """Whether these are the rows of a run with a validation split."""
    return any(not math.isnan(row["validation_accuracy"]) for row in rows)


def write_metrics(run: Folder, rows: Sequence[Row]) -> None:
    """Rewrite metrics.csv with all rows, so that a resumed run has each row once."""
    text = io.StringIO()
    columns = [name for name in COLUMNS if name not in VALIDATION_COLUMNS or has_validation(rows)]
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: f"{row[name]:.{DIGITS.get(name, 9)}g}" for name in columns} for row in rows)
    run.write(METRICS_FILE, text.getvalue().encode())


def read_metrics(run: Folder) -> list[Row]:
    """The rows of metrics.csv, one per epoch; empty if the file does not exist yet.

    Of a damaged file, the rows that can be read; a NOTE says so once.

    Raises:
        OSError: if the file cannot be read.
    """
    try:
        content = run.read(METRICS_FILE)
    except FileNotFoundError:
        return []
    return metrics_from(run, content)


def metrics_from(run: Folder, content: bytes) -> list[Row]:
    """The rows of metrics.csv with this content, as `read_metrics`."""
    rows, damage = parse_metrics(content)
    if damage:
        print_note_once(f"{run / METRICS_FILE} is damaged ({damage}): using what can be read.")
    return rows


def parse_metrics(content: bytes) -> tuple[list[Row], str]:
    """The rows of metrics.csv by epoch, and what is wrong with the file, which is empty for an intact one.

    Of repeated epochs, the last counts. A column that an older version did not write is nan (time: 0).
    """
    header, *lines = content.decode("utf-8-sig", errors="replace").splitlines() or [""]
    names = [name.strip() for name in header.split(",")]
    if "epoch" not in names:
        return [], "its first line does not name the columns" if header.strip() else "it is empty"
    rows: dict[float, Row] = {}
    damaged, repeated = [], []
    for number, line in enumerate(lines, start=2):
        try:
            row = _parse_row(names, line)
        except ValueError:
            damaged.append(str(number))
            continue
        if row["epoch"] in rows:
            repeated.append(str(number))
        rows[row["epoch"]] = row
    kinds = {
        "no column": [name for name in COLUMNS if name not in (*names, *VALIDATION_COLUMNS)],
        "not a row of numbers: line": damaged,
        "an epoch again: line": repeated,
    }
    damage = [
        f"{kind} {', '.join(found[:3])}{' and others' * (len(found) > 3)}" for kind, found in kinds.items() if found
    ]
    return [rows[epoch] for epoch in sorted(rows)], "; ".join(damage)


def _parse_row(names: Sequence[str], line: str) -> Row:
    """A line of metrics.csv.

    Raises:
        ValueError: if the line was cut, or contains anything but numbers.
    """
    given = dict(zip(names, map(float, line.split(",")), strict=True))
    for name, value in given.items():
        if not math.isfinite(value) and name not in MAY_BE_NAN:
            raise ValueError(f"{name} is {value}")
    if given["epoch"] < 1:
        raise ValueError("epochs count from 1")
    given = {"time": 0.0} | {name: value for name, value in given.items() if not math.isnan(value)}
    # The same object for every nan, so that rows that are read again compare as equal.
    return {name: given.get(name, math.nan) for name in COLUMNS}


def write_startup(run: Folder, phases: dict[str, float]) -> None:
    """Write startup.json: the end time of each phase from the command to the first step, in seconds since 1970."""
    run.write(STARTUP_FILE, (json.dumps(phases, indent=2) + "\n").encode())


def read_startup(run: Folder) -> dict[str, float]:
    """The phases of startup.json; empty before the first step."""
    return _read_numbers(run, STARTUP_FILE)


def write_progress(run: Folder, progress: dict[str, float]) -> None:
    """Write progress.json: the current step, loss, and speed. It is deleted at the end."""
    run.write(PROGRESS_FILE, json.dumps(progress).encode())


def read_progress(run: Folder) -> dict[str, float]:
    """The content of progress.json; empty if the file does not exist."""
    return _read_numbers(run, PROGRESS_FILE)


def _read_numbers(run: Folder, name: str) -> dict[str, float]:
    try:
        numbers: dict[str, float] = json.loads(run.read(name))
    except FileNotFoundError:
        return {}
    return numbers
