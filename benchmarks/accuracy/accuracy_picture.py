"""Plot test accuracy over the floating-point operations of training, from the --json files of `time_to_accuracy`.

python -m benchmarks.accuracy.accuracy_picture two.json eight.json --output accuracy.png
"""

import argparse
import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import PercentFormatter


def group_runs(paths: list[Path]) -> dict[str, dict[int, list[dict[str, Any]]]]:
    """Runs by recipe and image size, then by number of epochs."""
    groups: dict[str, dict[int, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for path in paths:
        for run in json.loads(path.read_text())["runs"]:
            pixels = f"{run['image_size']} pixels"
            if run.get("half_size_epochs"):
                pixels = f"{run['image_size'] // 2}, then {pixels}"
            groups[f"{run['recipe']}, {pixels}"][run["epochs"]].append(run)
    return groups


def draw(groups: dict[str, dict[int, list[dict[str, Any]]]], output: Path) -> None:
    """Plot a line per group, with the mean and standard deviation over seeds."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for label, by_epochs in sorted(groups.items()):
        epochs = sorted(by_epochs)
        petaflops = [by_epochs[count][0]["training_flops"] / 1e15 for count in epochs]
        accuracies = [[run["rows"][-1]["test_accuracy"] for run in by_epochs[count]] for count in epochs]
        means = [statistics.mean(values) for values in accuracies]
        spreads = [statistics.stdev(values) if len(values) > 1 else 0.0 for values in accuracies]
        axes.errorbar(petaflops, means, spreads, marker="o", markersize=4, capsize=3, label=label)
        for count, x, y in zip(epochs, petaflops, means, strict=True):
            axes.annotate(f"{count} epochs", (x, y), xytext=(6, -10), textcoords="offset points", fontsize=8)
    axes.set(
        xlabel="PFLOP of training (plain convolutions, without the optimizer)", ylabel="test accuracy", xscale="log"
    )
    axes.margins(x=0.15)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(output, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, default=Path("accuracy.png"))
    options = parser.parse_args()
    draw(group_runs(options.results), options.output)
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()
