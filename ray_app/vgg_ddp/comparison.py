"""Several runs side by side: a table, the settings in which they differ, and their curves."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from vgg_ddp.flags import UsageError, flag
from vgg_ddp.report import Row, best_row, mean_images_per_second, read_config, read_metrics
from vgg_ddp.storage import Folder

# Where a run was, and what it told of itself: nothing that decides its numbers.
INCIDENTAL = ("storage_path", "run_name", "resume", "address", "data_dir", "mlflow", "profile", "verbose")


@dataclass(frozen=True)
class FinishedEpochs:
    """What a run has done so far: its settings and a row of metrics for each epoch."""

    name: str
    config: dict[str, Any]
    rows: list[Row]

    def seconds(self) -> list[float]:
        """Training time up to the end of each epoch."""
        return list(accumulate(row["seconds"] for row in self.rows))


def read_run(location: str, storage_path: str) -> FinishedEpochs:
    """Read a run by its name in the storage path, or by the path or URI of its folder.

    Raises:
        UsageError: if there is no such run, or it has not finished an epoch.
    """
    try:
        folder = Folder.at(location) if "/" in location else Folder.at(storage_path) / location
        config, rows = read_config(folder), read_metrics(folder)
    except (OSError, ValueError) as error:
        raise UsageError(f"{location} cannot be read: {error}") from error
    if config is None:
        raise UsageError(f"{location}: there is no run at {folder}.")
    if not rows:
        raise UsageError(f"{location} has not finished an epoch yet.")
    return FinishedEpochs(location.rstrip("/").rsplit("/", 1)[-1], config, rows)


def format_table(runs: Sequence[FinishedEpochs]) -> str:
    """A line for each run, aligned, under a line of headings."""
    lines = [("run", "epochs", "loss", "train", "test", "best (epoch)", "images/s", "seconds")]
    for run in runs:
        last, best = run.rows[-1], best_row(run.rows)
        lines.append(
            (
                run.name,
                f"{len(run.rows)}/{run.config['epochs']}",
                f"{last['loss']:.4f}",
                f"{last['train_accuracy']:.2%}",
                f"{last['test_accuracy']:.2%}",
                f"{best['test_accuracy']:.2%} ({best['epoch']:.0f})",
                f"{mean_images_per_second(run.rows):,.0f}",
                f"{run.seconds()[-1]:,.1f}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([first.ljust(widths[0]), *(text.rjust(width) for text, width in zip(rest, widths[1:], strict=True))])
        for first, *rest in lines
    )


def format_differences(runs: Sequence[FinishedEpochs]) -> str:
    """A line for each setting that is not the same in all runs; empty if there is none."""
    names = [name for name in runs[0].config if name not in INCIDENTAL]
    values = {name: [run.config.get(name) for run in runs] for name in names}
    lines = [
        f"  {flag(name):<20} " + "  ".join(f"{run.name}: {value}" for run, value in zip(runs, given, strict=True))
        for name, given in values.items()
        if any(value != given[0] for value in given)
    ]
    return "\n".join(lines)


def draw(runs: Sequence[FinishedEpochs]) -> bytes:
    """A PNG of accuracy and loss of all runs, by epoch and by training time; training dashed, test solid."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    figure, axes = plt.subplots(2, 2, figsize=(11, 7), layout="constrained", sharey="row")
    longest = max(run.seconds()[-1] for run in runs)
    unit, unit_seconds = ("minutes", 60.0) if longest > 180 else ("seconds", 1.0)
    for index, run in enumerate(runs):
        positions = ([row["epoch"] for row in run.rows], [second / unit_seconds for second in run.seconds()])
        for column, position in enumerate(positions):
            for line, (test, train) in enumerate((("test_accuracy", "train_accuracy"), ("test_loss", "loss"))):
                color = f"C{index % 10}"
                test_values, train_values = ([row[name] for row in run.rows] for name in (test, train))
                axes[line, column].plot(position, test_values, color=color, marker="o", markersize=3, label=run.name)
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
    plt.close(figure)
    return picture.getvalue()
