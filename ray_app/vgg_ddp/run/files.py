"""The small files of a run folder: config.json, metrics.csv, startup.json, progress.json; the names of the others."""

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

from vgg_ddp.run.storage import Folder

CONFIG_FILE = "config.json"
METRICS_FILE = "metrics.csv"
CURVES_FILE = "curves.png"
STARTUP_FILE = "startup.json"
PROGRESS_FILE = "progress.json"
PROFILE_FILE = "profile.txt"
TRACE_FILE = "trace.json.gz"
MODEL_FILE = "model.safetensors"
COLUMNS = (
    "epoch",
    "step",
    "loss",
    "train_accuracy",
    "test_loss",
    "test_accuracy",
    "lr",
    "images_per_second",
    "seconds",
    "time",
)
DIGITS = {"time": 13}
Row = dict[str, float]
"""The metrics of one epoch. Losses and accuracies are means over all ranks, seconds exclude evaluation, and time is the
end of the epoch in seconds since 1970."""


def write_config(run: Folder, config: dict[str, Any]) -> None:
    run.write(CONFIG_FILE, (json.dumps(config, indent=2) + "\n").encode())


def read_config(run: Folder) -> dict[str, Any] | None:
    """The settings of a run, or None if the run does not exist."""
    if not run.exists(CONFIG_FILE):
        return None
    config: dict[str, Any] = json.loads(run.read(CONFIG_FILE))
    return config


def write_metrics(run: Folder, rows: Sequence[Row]) -> None:
    """Rewrite metrics.csv with all rows, so that a resumed run has each row once."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: f"{row[name]:.{DIGITS.get(name, 9)}g}" for name in COLUMNS} for row in rows)
    run.write(METRICS_FILE, text.getvalue().encode())


def read_metrics(run: Folder) -> list[Row]:
    """The rows of metrics.csv; empty if the file does not exist yet."""
    try:
        text = run.read(METRICS_FILE).decode()
    except FileNotFoundError:
        return []
    return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(io.StringIO(text))]


def write_startup(run: Folder, phases: dict[str, float]) -> None:
    """Write startup.json: the end time of each phase from the command to the first step, in seconds since 1970."""
    run.write(STARTUP_FILE, (json.dumps(phases, indent=2) + "\n").encode())


def read_startup(run: Folder) -> dict[str, float]:
    """The phases of startup.json; empty before the first step."""
    return _read_numbers(run, STARTUP_FILE)


def write_progress(run: Folder, progress: dict[str, float]) -> None:
    """Write progress.json: the current step, loss, and speed. The driver deletes it at the end."""
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
