"""Metrics as text: one line per epoch, a summary of a run, a comparison of runs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from vgg_ddp.config import TrainConfig
from vgg_ddp.flags import UsageError, flag
from vgg_ddp.run.chosen import read_chosen
from vgg_ddp.run.files import Row, has_validation, read_config, read_metrics
from vgg_ddp.run.storage import Folder

# Where a run is stored and what it reports; these settings do not affect its numbers.
INCIDENTAL = ("storage_path", "run_name", "resume", "address", "data_dir", "mlflow", "profile", "verbose")
# The choice in chosen.json that a setting leads to. If both differ, only the choice is listed.
CHOICE_OF = {
    "num_workers": "world_size",
    "device": "device",
    "batch_size": "global_batch_size",
    "precision": "precision",
    "graphs": "cuda_graphs",
    "fast_convolutions": "fast_convolutions",
    "ingest": "ingest",
}


# Headings of the table above the accuracies on the evaluated splits.
TEST_HEADINGS = ("test", "best test (epoch)")
VALIDATION_HEADINGS = ("validation", "best validation (epoch)", "test (epoch)")


@dataclass(frozen=True)
class FinishedEpochs:
    """The finished epochs of a run: its settings, its choices (see `read_chosen`), and a row of metrics per epoch."""

    name: str
    config: dict[str, Any]
    chosen: dict[str, str]
    rows: list[Row]

    def seconds(self) -> list[float]:
        """Cumulative training time at the end of each epoch."""
        return list(accumulate(row["seconds"] for row in self.rows))


def read_run(location: str, storage_path: str) -> FinishedEpochs:
    """Read a run by its name in the storage path, or by the path or URI of its folder.

    Raises:
        UsageError: if the run does not exist or has not finished an epoch.
    """
    try:
        folder = Folder.at(location) if "/" in location else Folder.at(storage_path) / location
        config, chosen, rows = read_config(folder), read_chosen(folder), read_metrics(folder)
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{location} cannot be read: {error}") from error
    if config is None:
        raise UsageError(f"{location}: no run at {folder}.")
    if not rows:
        raise UsageError(f"{location} has not finished an epoch yet.")
    return FinishedEpochs(location.rstrip("/").rsplit("/", 1)[-1], config, chosen, rows)


def format_table(runs: Sequence[FinishedEpochs]) -> str:
    """A table with a heading and one line per run."""
    with_validation = any(has_validation(run.rows) for run in runs)
    evaluated = VALIDATION_HEADINGS if with_validation else TEST_HEADINGS
    lines = [["run", "epochs", "loss", "train", *evaluated, "images/s", "seconds"]]
    for run in runs:
        last = run.rows[-1]
        lines.append(
            [
                run.name,
                f"{last['epoch']:.0f}/{run.config.get('epochs', '?')}",
                f"{last['loss']:.4f}",
                f"{last['train_accuracy']:.2%}",
                *_evaluated(run.rows, with_validation),
                f"{mean_images_per_second(run.rows):,.0f}",
                f"{run.seconds()[-1]:,.1f}",
            ]
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([first.ljust(widths[0]), *(text.rjust(width) for text, width in zip(rest, widths[1:], strict=True))])
        for first, *rest in lines
    )


def _evaluated(rows: Sequence[Row], with_validation: bool) -> list[str]:
    """The cells of a run below the headings of the evaluated splits."""
    last, best = rows[-1], best_row(rows)
    if not with_validation:
        return [format_share(last["test_accuracy"]), _share_of_epoch(best, "test_accuracy")]
    return [
        format_share(last["validation_accuracy"]),
        _share_of_epoch(best, "validation_accuracy"),
        _share_of_epoch(kept_row(rows), "test_accuracy"),
    ]


def _share_of_epoch(row: Row, name: str) -> str:
    return "-" if math.isnan(row[name]) else f"{row[name]:.2%} ({row['epoch']:.0f})"


def format_differences(runs: Sequence[FinishedEpochs]) -> str:
    """One line per setting, and per choice of the program, that differs between the runs; empty if none does."""
    settings = {name: [run.config.get(name) for run in runs] for name in runs[0].config if name not in INCIDENTAL}
    # Runs of older versions have no choices.
    names = dict.fromkeys(name for run in runs for name in run.chosen)
    choices = {name: [run.chosen.get(name, "unknown") for run in runs] for name in names}
    digests = choices.pop("images", ["unknown"])
    if len(set(digests)) == 1 and "unknown" not in digests:
        # The same images, perhaps in different places.
        settings.pop("data", None)
    choices = {name: values for name, values in choices.items() if len(set(values) - {"unknown"}) > 1}
    known = {name for name, values in choices.items() if "unknown" not in values}
    differing = {
        flag(name): values
        for name, values in settings.items()
        # A damaged file may have lists as values.
        if len(set(map(repr, values))) > 1 and CHOICE_OF.get(name) not in known
    }
    return "\n".join(
        f"  {name:<20} " + "  ".join(f"{run.name}: {value}" for run, value in zip(runs, values, strict=True))
        for name, values in (differing | choices).items()
    )


def format_row(row: Row, epochs: int) -> str:
    """One aligned line for an epoch, with the accuracy on the split that is evaluated after each epoch."""
    split = evaluation_split([row])
    return (
        f"{_epoch_of(row, epochs)}  loss {row['loss']:.4f}  train {row['train_accuracy']:6.2%}  "
        f"{split} {format_share(row[f'{split}_accuracy']):>6}  lr {row['lr']:.4f}  "
        f"{row['images_per_second']:,.0f} images/s  {row['seconds']:.1f} s"
    )


def format_test(row: Row, epochs: int) -> str:
    """A line for the test accuracy of the weights that a run with a validation split keeps."""
    return f"{_epoch_of(row, epochs)}  test {format_share(row['test_accuracy'])} with the weights of this epoch"


def _epoch_of(row: Row, epochs: int) -> str:
    return f"epoch {row['epoch']:>{len(str(epochs))}.0f}/{epochs}"


def evaluation_split(rows: Sequence[Row]) -> str:
    """The split that is evaluated after each epoch: validation or, without a validation split, test."""
    return "validation" if has_validation(rows) else "test"


def best_row(rows: Sequence[Row]) -> Row:
    """The first epoch with the highest accuracy on that split; without any, the last epoch."""
    accuracy = f"{evaluation_split(rows)}_accuracy"
    known = [row for row in rows if not math.isnan(row[accuracy])]
    return max(known, key=lambda row: row[accuracy]) if known else rows[-1]


def row_to_keep(rows: Sequence[Row], config: TrainConfig) -> Row:
    """The epoch whose weights a run keeps if it ends now: the last one; with --keep-best, the best one.

    Epochs of half-size images are kept only if there are no others.
    """
    return best_row(rows[config.half_size_epochs :] or rows) if config.keep_best else rows[-1]


def kept_row(rows: Sequence[Row]) -> Row:
    """The last epoch whose weights were tested; without any, the last epoch."""
    return next((row for row in reversed(rows) if not math.isnan(row["test_accuracy"])), rows[-1])


def format_share(share: float) -> str:
    """A share in percent; "-" if it is unknown, as the accuracy on a test split without labels."""
    return "-" if math.isnan(share) else f"{share:.2%}"


def mean_images_per_second(rows: Sequence[Row]) -> float:
    """Mean training images per second over all epochs."""
    seconds = sum(row["seconds"] for row in rows)
    return sum(row["images_per_second"] * row["seconds"] for row in rows) / max(seconds, 1e-9)


def format_summary(rows: Sequence[Row]) -> str:
    """The results of a finished run, as a small table."""
    last, best, images_per_second = rows[-1], best_row(rows), mean_images_per_second(rows)
    seconds = sum(row["seconds"] for row in rows)
    accuracy = f"{evaluation_split(rows)}_accuracy"
    best_so_far = f"{last[accuracy]:.2%} (best {best[accuracy]:.2%}, epoch {best['epoch']:.0f})"
    with_validation = has_validation(rows)
    tested = kept_row(rows) if with_validation else last
    test = f"{tested['test_accuracy']:.2%} (weights of epoch {tested['epoch']:.0f})" if with_validation else best_so_far
    lines = (
        ("epochs", f"{last['epoch']:.0f}"),
        ("training loss", f"{last['loss']:.4f}"),
        ("training accuracy", f"{last['train_accuracy']:.2%}"),
        *([("validation", best_so_far)] if with_validation else []),
        ("test accuracy", "-" if math.isnan(tested["test_accuracy"]) else test),
        ("training time", f"{seconds:.1f} s"),
        ("images per second", f"{images_per_second:,.0f}"),
    )
    return "\n".join(f"  {name:<18} {value}" for name, value in lines)
