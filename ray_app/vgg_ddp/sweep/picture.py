"""Plot the validation accuracy of all trials by epoch: sweep.png."""

import io
from collections.abc import Sequence

from vgg_ddp.run.files import Row
from vgg_ddp.sweep.config import METRIC
from vgg_ddp.sweep.trials import Trial

PICTURE_FILE = "sweep.png"


def draw_sweep(curves: Sequence[tuple[Trial, Sequence[Row]]], best: Trial | None, title: str) -> bytes:
    """A line per trial, as PNG: the best one highlighted, and a cross where a trial ended early."""
    # Not pyplot, whose settings belong to the program that calls this.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    for trial, rows in curves:
        epochs, accuracies = ([row[column] for row in rows] for column in ("epoch", METRIC))
        is_best = trial is best
        color, width, order = ("C3", 2.5, 3) if is_best else ("0.6", 1.0, 2)
        label = f"{trial.name} (best)" if is_best else None
        axes.plot(epochs, accuracies, color=color, linewidth=width, zorder=order, label=label)
        if rows:
            marker = "o" if trial.state == "finished" else "x"
            axes.plot(epochs[-1], accuracies[-1], color=color, marker=marker, markersize=6, zorder=order)
    axes.set(xlabel="epoch", ylabel="validation accuracy", title=title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    axes.grid(alpha=0.3)
    if best is not None:
        axes.legend(loc="lower right")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    return picture.getvalue()
