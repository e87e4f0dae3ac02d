"""Accuracy that a recipe reaches in so many epochs, and the epochs and seconds to given accuracies.

    python benchmarks/time_to_accuracy.py --data cifar10 --recipes fast classic --epochs 2 8 --seeds 0 1 2

Accuracy is that of plain test images after the last epoch, without test-time augmentation. Seconds are those of
training, evaluation and starting apart. Flags after -- go to main.py. To tune, give a --data whose test split is held
out from the training images. `accuracy_picture.py` draws what --json keeps. With --watch-memory, the most that a worker
of Ray's has in use is given by epoch: in a long run, it should not grow.
"""

import argparse
import statistics
from pathlib import Path

from program import mean_and_spread, train
from record import write_json
from throughput import flops_per_image

TARGETS = (0.80, 0.85, 0.90, 0.92, 0.94)


def first_to_reach(rows: list[dict[str, float]], target: float) -> str:
    """Epochs and seconds of training up to an accuracy, as text."""
    seconds = 0.0
    for row in rows:
        seconds += row["seconds"]
        if row["test_accuracy"] >= target:
            return f"{row['epoch']:.0f} ({seconds:,.0f} s)"
    return "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--recipes", nargs="+", default=["fast", "classic"])
    parser.add_argument("--epochs", nargs="+", type=int, default=[2])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--half-size-epochs", type=int, default=0)
    parser.add_argument("--num-workers", type=int, default=0)
    parser.add_argument("--watch-memory", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("flags", nargs="*", help="more flags of main.py, after --")
    options = parser.parse_args()
    if options.watch_memory and not options.num_workers:
        parser.error("--watch-memory looks at Ray's workers: give --num-workers")
    settings = {
        "data": options.data,
        "num_workers": options.num_workers,
        "flags": options.flags,
        "n": len(options.seeds),
    }
    runs: list[dict[str, object]] = []
    summary = []
    for recipe in options.recipes:
        for epochs in options.epochs:
            finals, seconds = [], []
            for seed in options.seeds:
                flags = ["--data", options.data, "--recipe", recipe, "--epochs", epochs, "--seed", seed]
                flags += ["--image-size", options.image_size, "--half-size-epochs", options.half_size_epochs]
                flags += ["--num-workers", options.num_workers, *options.flags]
                trained = train(*flags, watch_memory=options.watch_memory, show_epochs=True)
                rows = trained.rows
                finals.append(rows[-1]["test_accuracy"])
                seconds.append(sum(row["seconds"] for row in rows))
                images = round(rows[0]["images_per_second"] * rows[0]["seconds"])
                halved = options.half_size_epochs
                flops = (epochs - halved) * images * flops_per_image(options.image_size)
                flops += halved * images * flops_per_image(options.image_size // 2)
                run = {"recipe": recipe, "epochs": epochs, "image_size": options.image_size, "seed": seed}
                runs.append(run | {"half_size_epochs": halved, "training_flops": flops, "rows": rows})
                reached = "  ".join(f"{target:.0%}: {first_to_reach(rows, target)}" for target in TARGETS)
                print(
                    f"{recipe}, {epochs} epochs, seed {seed}: {finals[-1]:.2%} in {seconds[-1]:,.0f} s  {reached}",
                    flush=True,
                )
                if options.watch_memory:
                    peaks = runs[-1]["peak_memory_by_epoch"] = trained.peaks_by_epoch()
                    print("  peak memory by epoch, MB:", *(f"{peak / 1e6:,.0f}" for peak in peaks), flush=True)
                # After each run: the next may take hours, or fail.
                write_json(options.json, {"settings": settings, "runs": runs})
            middle = statistics.median(seconds)
            summary.append(f"  {recipe:<8} {epochs:>3} epochs  {mean_and_spread(finals)}  {middle:,.0f} s")
    print(f"\nmean and standard deviation of {len(options.seeds)} seed(s), median of seconds\n", *summary, sep="\n")


if __name__ == "__main__":
    main()
