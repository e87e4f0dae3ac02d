"""The run folder: config.json, metrics.csv, curves.png, model.safetensors; the lines and the table on screen."""

import csv
import io
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vgg_ddp.storage import Folder

if TYPE_CHECKING:
    from torch import Tensor

CONFIG_FILE = "config.json"
METRICS_FILE = "metrics.csv"
CURVES_FILE = "curves.png"
STARTUP_FILE = "startup.json"
PROGRESS_FILE = "progress.json"
PROFILE_FILE = "profile.txt"
TRACE_FILE = "trace.json.gz"
MODEL_FILE = "model.safetensors"
METADATA_KEY = "vgg_ddp"
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
"""One epoch: losses and accuracies are means over all ranks, seconds are those of training (not of evaluation), time is
when it was over, in seconds since 1970."""


def write_config(run: Folder, config: dict[str, Any]) -> None:
    run.write(CONFIG_FILE, (json.dumps(config, indent=2) + "\n").encode())


def read_config(run: Folder) -> dict[str, Any] | None:
    """The settings that a run was started with, or None if there is no such run."""
    if not run.exists(CONFIG_FILE):
        return None
    config: dict[str, Any] = json.loads(run.read(CONFIG_FILE))
    return config


def write_metrics(run: Folder, rows: Sequence[Row]) -> None:
    """Write metrics.csv anew with all rows, so that a resumed run leaves no row twice."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: f"{row[name]:.{DIGITS.get(name, 9)}g}" for name in COLUMNS} for row in rows)
    run.write(METRICS_FILE, text.getvalue().encode())


def read_metrics(run: Folder) -> list[Row]:
    """The rows of metrics.csv; none where there is no such file yet."""
    try:
        text = run.read(METRICS_FILE).decode()
    except FileNotFoundError:
        return []
    return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(io.StringIO(text))]


def write_startup(run: Folder, phases: dict[str, float]) -> None:
    """Write startup.json: when each phase from the command to the first step was over, in seconds since 1970."""
    run.write(STARTUP_FILE, (json.dumps(phases, indent=2) + "\n").encode())


def read_startup(run: Folder) -> dict[str, float]:
    """The phases of startup.json; none before the first step."""
    return _read_numbers(run, STARTUP_FILE)


def write_progress(run: Folder, progress: dict[str, float]) -> None:
    """Write progress.json: how far the run is within an epoch, for whoever watches it live."""
    run.write(PROGRESS_FILE, json.dumps(progress).encode())


def read_progress(run: Folder) -> dict[str, float]:
    """What progress.json holds; nothing before the first steps."""
    return _read_numbers(run, PROGRESS_FILE)


def _read_numbers(run: Folder, name: str) -> dict[str, float]:
    try:
        numbers: dict[str, float] = json.loads(run.read(name))
    except FileNotFoundError:
        return {}
    return numbers


def write_model(
    run: Folder, tensors: "dict[str, Tensor]", class_names: Sequence[str], preprocessing: dict[str, Any]
) -> None:
    """Write model.safetensors: plain tensors, with what `predict.py` needs to know in the file's metadata."""
    from safetensors.torch import save

    description = {"architecture": "VGG11", "class_names": list(class_names), **preprocessing}
    # One entry only: safetensors orders several at random, and equal models shall be equal files.
    metadata = {METADATA_KEY: json.dumps(description, sort_keys=True)}
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    run.write(MODEL_FILE, save(contiguous, metadata))


def format_row(row: Row, epochs: int) -> str:
    """One aligned line for an epoch."""
    return (
        f"epoch {row['epoch']:>{len(str(epochs))}.0f}/{epochs}  loss {row['loss']:.4f}  "
        f"train {row['train_accuracy']:6.2%}  test {row['test_accuracy']:6.2%}  lr {row['lr']:.4f}  "
        f"{row['images_per_second']:,.0f} images/s  {row['seconds']:.1f} s"
    )


def best_row(rows: Sequence[Row]) -> Row:
    """The first epoch of those with the highest test accuracy."""
    return max(rows, key=lambda row: row["test_accuracy"])


def mean_images_per_second(rows: Sequence[Row]) -> float:
    """Images per second over all epochs."""
    seconds = sum(row["seconds"] for row in rows)
    return sum(row["images_per_second"] * row["seconds"] for row in rows) / max(seconds, 1e-9)


def format_summary(rows: Sequence[Row]) -> str:
    """A small table of what a finished run reached."""
    last = rows[-1]
    best, images_per_second = best_row(rows), mean_images_per_second(rows)
    seconds = sum(row["seconds"] for row in rows)
    lines = (
        ("epochs", f"{last['epoch']:.0f}"),
        ("training loss", f"{last['loss']:.4f}"),
        ("training accuracy", f"{last['train_accuracy']:.2%}"),
        ("test accuracy", f"{last['test_accuracy']:.2%} (best {best['test_accuracy']:.2%}, epoch {best['epoch']:.0f})"),
        ("training time", f"{seconds:.1f} s"),
        ("images per second", f"{images_per_second:,.0f}"),
    )
    return "\n".join(f"  {name:<18} {value}" for name, value in lines)


def write_curves(run: Folder, rows: Sequence[Row], title: str) -> None:
    """Draw loss and accuracy by epoch to curves.png."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    epochs = [row["epoch"] for row in rows]
    figure, (loss_axes, accuracy_axes) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name, axes, columns in (
        ("loss", loss_axes, ("loss", "test_loss")),
        ("accuracy", accuracy_axes, ("train_accuracy", "test_accuracy")),
    ):
        for column, label in zip(columns, ("training", "test"), strict=True):
            axes.plot(epochs, [row[column] for row in rows], marker="o", markersize=3, label=label)
        axes.set(xlabel="epoch", ylabel=name)
        axes.set_xlim(0, max(epochs) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    accuracy_axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    figure.suptitle(title)
    picture = io.BytesIO()
    figure.savefig(picture, dpi=120)
    plt.close(figure)
    run.write(CURVES_FILE, picture.getvalue())
