"""Ablation of the fast recipe: test accuracy without each of its ingredients, one at a time.

    python -m benchmarks.accuracy.ablation --data cifar10 --epochs 2 --seeds 0 1

Each run trains in its own process. Ingredients without a flag are fields of the recipe, which `AblationConfig` changes.
"""

import argparse
import dataclasses
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.program import MAIN, mean_and_spread, train
from benchmarks.record import write_json
from vgg_ddp.config import TrainConfig
from vgg_ddp.driver.conclude import exit_code
from vgg_ddp.driver.launch import launch
from vgg_ddp.flags import parse_flags
from vgg_ddp.recipes import CLASSIC, FAST, Recipe

# The fields of the recipe to change for each variant.
CHANGES: dict[str, dict[str, object]] = {
    # With the classic recipe's settings, which were not tuned for this model.
    "SGD instead of Muon": {"muon": False, "lr": CLASSIC.lr, "momentum": CLASSIC.momentum},
    "random filters, not identities": {"identity_filters": False},
    "constant learning rate": {"lr_decay": False},
    # torch's default.
    "slower averages of batch normalization": {"norm_momentum": 0.1},
    # Without the paper's factor.
    "slower biases of batch normalization": {"norm_bias_lr": FAST.norm_bias_lr / 64},
}
FLAGS = {
    "whole recipe": [],
    "no label smoothing": ["--label-smoothing", "0"],
    "no shift and no flip": ["--augment-shift", "0"],
    "classic": ["--recipe", "classic"],
}


@dataclass(frozen=True)
class AblationConfig(TrainConfig):
    """A run whose recipe has changed fields. An unknown field is a TypeError."""

    changes: dict[str, object] = field(default_factory=dict)

    def chosen_recipe(self) -> Recipe:
        return dataclasses.replace(super().chosen_recipe(), **self.changes)  # type: ignore[arg-type]


def run_changed(changes: dict[str, object], flags: list[str]) -> int:
    """Train like main.py, with a changed recipe; return the exit code."""
    given = parse_flags(TrainConfig, flags, str(MAIN)).to_dict()
    return exit_code(launch(AblationConfig(**given, changes=changes), flags, time.time()))  # type: ignore[arg-type]


def main() -> None:
    if sys.argv[1:2] == ["--changed"]:
        sys.exit(run_changed(json.loads(sys.argv[2]), sys.argv[3:]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--only", nargs="+", choices=[*FLAGS, *CHANGES], help="some of the variants")
    parser.add_argument("--json", type=Path)
    parser.add_argument("flags", nargs="*", help="more flags of main.py, after --")
    options = parser.parse_args()
    common = ["--data", options.data, "--epochs", options.epochs, "--num-workers", 0, *options.flags]
    accuracies: dict[str, list[float]] = {}
    for seed in options.seeds:
        for name in options.only or [*FLAGS, *CHANGES]:
            changed = ["-m", "benchmarks.accuracy.ablation", "--changed", json.dumps(CHANGES.get(name))]
            flags = ["--recipe", "fast", *common, "--seed", seed, *FLAGS.get(name, [])]
            trained = train(*flags, script=changed if name in CHANGES else [MAIN])
            accuracies.setdefault(name, []).append(trained.rows[-1]["test_accuracy"])
            print(f"seed {seed}: {accuracies[name][-1]:.2%}  {name}", flush=True)
    print(
        f"\ntest accuracy after {options.epochs} epochs, mean and standard deviation of {len(options.seeds)} seed(s)\n"
    )
    for name, values in accuracies.items():
        print(f"  {name:<40} {mean_and_spread(values)}")
    settings = {"data": options.data, "epochs": options.epochs, "seeds": options.seeds, "flags": options.flags}
    write_json(options.json, {"settings": settings, "accuracies": accuracies})


if __name__ == "__main__":
    main()
