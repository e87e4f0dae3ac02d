"""Test accuracy of a recipe after a number of epochs, and the epochs and seconds to reach target accuracies.

    python -m benchmarks.accuracy.time_to_accuracy --data cifar10 --recipes fast classic --epochs 2 8 --seeds 0 1 2

Accuracy is measured on plain test images after the last epoch, without test-time augmentation. Seconds count training
only, not evaluation or start-up. Flags after -- are passed to main.py. To tune settings, give a --data whose test split
was held out from the training images. `accuracy_picture` plots the --json file. With --watch-memory, the peak memory of
a Ray worker is printed for each epoch; it must not grow in a long run.
"""

import argparse
import statistics
from typing import Any

from benchmarks.program import Trained, mean_and_spread, train
from benchmarks.record import new_parser, write_json
from benchmarks.speed.throughput import flops_per_image

TARGETS = (0.80, 0.85, 0.90, 0.92, 0.94)


def first_to_reach(rows: list[dict[str, float]], target: float) -> str:
    """Epochs and seconds of training to reach an accuracy, as text."""
    seconds = 0.0
    for row in rows:
        seconds += row["seconds"]
        if row["test_accuracy"] >= target:
            return f"{row['epoch']:.0f} ({seconds:,.0f} s)"
    return "-"


def training_flops(rows: list[dict[str, float]], image_size: int, half_size_epochs: int) -> float:
    """Floating-point operations of a whole run, with plain convolutions and without the optimizer."""
    images = round(rows[0]["images_per_second"] * rows[0]["seconds"])
    full = (len(rows) - half_size_epochs) * flops_per_image(image_size)
    return images * (full + half_size_epochs * flops_per_image(image_size // 2))


def run_once(recipe: str, epochs: int, seed: int, options: argparse.Namespace) -> Trained:
    """Train once, and print the accuracy and when each target was reached."""
    flags = ["--data", options.data, "--recipe", recipe, "--epochs", epochs, "--seed", seed]
    flags += ["--image-size", options.image_size, "--half-size-epochs", options.half_size_epochs]
    flags += ["--num-workers", options.num_workers, *options.flags]
    trained = train(*flags, watch_memory=options.watch_memory, show_epochs=True)
    rows = trained.rows
    seconds = sum(row["seconds"] for row in rows)
    reached = "  ".join(f"{target:.0%}: {first_to_reach(rows, target)}" for target in TARGETS)
    accuracy = rows[-1]["test_accuracy"]
    print(f"{recipe}, {epochs} epochs, seed {seed}: {accuracy:.2%} in {seconds:,.0f} s  {reached}", flush=True)
    if options.watch_memory:
        peaks = (f"{peak / 1e6:,.0f}" for peak in trained.peaks_by_epoch())
        print("  peak memory by epoch, MB:", *peaks, flush=True)
    return trained


def describe_run(recipe: str, epochs: int, seed: int, trained: Trained, options: argparse.Namespace) -> dict[str, Any]:
    """The entry of a run in the JSON file."""
    run = {
        "recipe": recipe,
        "epochs": epochs,
        "image_size": options.image_size,
        "seed": seed,
        "half_size_epochs": options.half_size_epochs,
        "training_flops": training_flops(trained.rows, options.image_size, options.half_size_epochs),
        "rows": trained.rows,
    }
    return run | ({"peak_memory_by_epoch": trained.peaks_by_epoch()} if options.watch_memory else {})


def parse_options() -> argparse.Namespace:
    parser = new_parser(__doc__)
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--recipes", nargs="+", default=["fast", "classic"])
    parser.add_argument("--epochs", nargs="+", type=int, default=[2])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--half-size-epochs", type=int, default=0)
    parser.add_argument("--num-workers", type=int, default=0)
    parser.add_argument("--watch-memory", action="store_true")
    parser.add_argument("flags", nargs="*", help="more flags for main.py, after --")
    options = parser.parse_args()
    if options.watch_memory and not options.num_workers:
        parser.error("--watch-memory watches Ray's workers: give --num-workers")
    return options


def main() -> None:
    options = parse_options()
    settings = {name: getattr(options, name) for name in ("data", "num_workers", "flags")}
    settings["n"] = len(options.seeds)
    runs: list[dict[str, Any]] = []
    summary = []
    for recipe in options.recipes:
        for epochs in options.epochs:
            finals, seconds = [], []
            for seed in options.seeds:
                trained = run_once(recipe, epochs, seed, options)
                finals.append(trained.rows[-1]["test_accuracy"])
                seconds.append(sum(row["seconds"] for row in trained.rows))
                runs.append(describe_run(recipe, epochs, seed, trained, options))
                # After each run, because the next one may take hours or fail.
                write_json(options.json, {"settings": settings, "runs": runs})
            median = statistics.median(seconds)
            summary.append(f"  {recipe:<8} {epochs:>3} epochs  {mean_and_spread(finals)}  {median:,.0f} s")
    print(f"\nmean and standard deviation of {len(options.seeds)} seed(s), median of seconds\n", *summary, sep="\n")


if __name__ == "__main__":
    main()
