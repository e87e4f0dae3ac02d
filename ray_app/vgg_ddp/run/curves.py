"""Plot metrics by epoch: curves.png of one run, or a comparison of several runs."""

import io
import math
from collections.abc import Sequence

from vgg_ddp.run.files import CURVES_FILE, Row
from vgg_ddp.run.storage import Folder
from vgg_ddp.run.summary import FinishedEpochs, evaluation_split, kept_row


def draw(runs: Sequence[FinishedEpochs]) -> bytes:
    """Plot accuracy and loss of all runs by epoch and by training time, as PNG.

    Training is dashed; the split that is evaluated after each epoch, which the legend names, is solid.
    """
    # Not pyplot, whose settings belong to the program or notebook that trains.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    figure = Figure(figsize=(11, 7), layout="constrained")
    axes = figure.subplots(2, 2, sharey="row")
    longest = max(run.seconds()[-1] for run in runs)
    unit, unit_seconds = ("minutes", 60.0) if longest > 180 else ("seconds", 1.0)
    for index, run in enumerate(runs):
        split = evaluation_split(run.rows)
        positions = ([row["epoch"] for row in run.rows], [second / unit_seconds for second in run.seconds()])
        for column, position in enumerate(positions):
            names = ((f"{split}_accuracy", "train_accuracy"), (f"{split}_loss", "loss"))
            for line, (evaluated, train) in enumerate(names):
                color, label = f"C{index % 10}", f"{run.name}, {split}"
                evaluated_values, train_values = ([row[name] for row in run.rows] for name in (evaluated, train))
                axes[line, column].plot(position, evaluated_values, color=color, marker="o", markersize=3, label=label)
                axes[line, column].plot(position, train_values, color=color, linestyle="--", linewidth=1, alpha=0.7)
    for column, label in enumerate(("epoch", f"training time in {unit}")):
        axes[1, column].set_xlabel(label)
        for line in range(2):
            axes[line, column].set_xlim(left=0)
            axes[line, column].grid(alpha=0.3)
            if label == "epoch":
                axes[line, column].xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0, 0].set_ylabel("accuracy (training dashed)")
    axes[0, 0].yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    axes[1, 0].set_ylabel("loss (training dashed)")
    axes[0, 0].legend()
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    return picture.getvalue()


def write_curves(run: Folder, rows: Sequence[Row], title: str) -> None:
    """Plot loss and accuracy by epoch to curves.png."""
    # Not pyplot, whose settings belong to the program or notebook that trains.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    epochs = [row["epoch"] for row in rows]
    figure = Figure(figsize=(10, 4), layout="constrained")
    loss_axes, accuracy_axes = figure.subplots(1, 2)
    split, tested = evaluation_split(rows), kept_row(rows)
    for name, axes, train in (("loss", loss_axes, "loss"), ("accuracy", accuracy_axes, "train_accuracy")):
        for column, label in ((train, "training"), (f"{split}_{name}", split)):
            axes.plot(epochs, [row[column] for row in rows], marker="o", markersize=3, label=label)
        if split == "validation" and not math.isnan(tested["test_accuracy"]):
            axes.plot(tested["epoch"], tested[f"test_{name}"], "k*", markersize=9, label="test")
        axes.set(xlabel="epoch", ylabel=name)
        axes.set_xlim(0, max(epochs) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    accuracy_axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    figure.suptitle(title)
    picture = io.BytesIO()
    figure.savefig(picture, dpi=120)
    run.write(CURVES_FILE, picture.getvalue())
