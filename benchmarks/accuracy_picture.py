"""Draw accuracy against the floating-point operations of training, from the files that `time_to_accuracy.py` keeps.

python benchmarks/accuracy_picture.py two.json eight.json --output accuracy.png
"""

import argparse
import json
import statistics
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import PercentFormatter


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, default=Path("accuracy.png"))
    options = parser.parse_args()
    accuracies: dict[tuple[str, int], dict[tuple[float, int], list[float]]] = defaultdict(lambda: defaultdict(list))
    for path in options.results:
        for run in json.loads(path.read_text())["runs"]:
            line, point = (run["recipe"], run["image_size"]), (run["training_flops"] / 1e15, run["epochs"])
            accuracies[line][point].append(run["rows"][-1]["test_accuracy"])
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for (recipe, image_size), points in sorted(accuracies.items()):
        ordered = sorted(points)
        means = [statistics.mean(points[point]) for point in ordered]
        spreads = [statistics.stdev(points[point]) if len(points[point]) > 1 else 0.0 for point in ordered]
        petaflops = [point[0] for point in ordered]
        axes.errorbar(
            petaflops, means, spreads, marker="o", markersize=4, capsize=3, label=f"{recipe}, {image_size} pixels"
        )
        for (x, epochs), y in zip(ordered, means, strict=True):
            axes.annotate(f"{epochs} epochs", (x, y), xytext=(6, -10), textcoords="offset points", fontsize=8)
    axes.set(xlabel="PFLOP of training (without the optimizer's)", ylabel="test accuracy", xscale="log")
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(options.output, dpi=120)
    print(f"drawn to {options.output}")


if __name__ == "__main__":
    main()
