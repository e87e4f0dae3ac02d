"""What each ingredient of the fast recipe buys: the accuracy without it, one at a time.

    python benchmarks/ablation.py --data cifar10 --epochs 2 --seeds 0 1

One process trains each time. What has no flag is taken out of the program's modules before it starts.
"""

import argparse
import dataclasses
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from program import MAIN, ROOT, mean_and_spread, train
from record import write_json
from torch import Tensor

sys.path.insert(0, str(ROOT / "ray_app"))
from vgg_ddp import config, fast_vgg, optim, worker
from vgg_ddp.recipe import CLASSIC


def without_muon() -> None:
    def sgd(filters: list[Tensor], *_: object) -> torch.optim.SGD:
        # As in the classic recipe, not tuned for these filters.
        return torch.optim.SGD(filters, lr=CLASSIC.lr, momentum=CLASSIC.momentum, nesterov=True, fused=True)

    optim.Muon = sgd  # type: ignore[misc, assignment]


def _change_model(change: Callable[[fast_vgg.FastVGG11], None]) -> None:
    build = fast_vgg.build_fast_model

    def changed(num_classes: int, seed: int) -> fast_vgg.FastVGG11:
        model = build(num_classes, seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            change(model)
        return model

    worker.build_fast_model = changed


def without_identities() -> None:
    def randomize(model: fast_vgg.FastVGG11) -> None:
        for stage in model.stages()[1:]:
            stage.convolution.reset_parameters()

    _change_model(randomize)


def without_alternating_flip() -> None:
    choose = config.choose_recipe
    config.choose_recipe = lambda *of: dataclasses.replace(choose(*of), alternating_flip=False)


def without_decay() -> None:
    worker.schedule = lambda *_: 1.0


def with_long_averages() -> None:
    # torch's default.
    fast_vgg.NORM_MOMENTUM = 0.1


def with_slow_biases() -> None:
    # Without the factor of the paper's.
    optim.NORM_BIAS_LR /= 64


CHANGES: dict[str, Callable[[], None]] = {
    "SGD instead of Muon": without_muon,
    "random filters, not identities": without_identities,
    "flips at random": without_alternating_flip,
    "constant learning rate": without_decay,
    "slower averages of batch normalisation": with_long_averages,
    "slower biases of batch normalisation": with_slow_biases,
}
FLAGS = {
    "whole recipe": [],
    "no label smoothing": ["--label-smoothing", "0"],
    "no shift and no flip": ["--augment-shift", "0"],
    "classic": ["--recipe", "classic"],
}


def run_changed(name: str, flags: list[str]) -> None:
    """Be main.py without an ingredient."""
    CHANGES[name]()
    sys.argv = [str(MAIN), *flags]
    runpy.run_path(str(MAIN), run_name="__main__")


def main() -> None:
    if sys.argv[1:2] == ["--changed"]:
        run_changed(sys.argv[2], sys.argv[3:])
        return
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
            script = [Path(__file__), "--changed", name] if name in CHANGES else [MAIN]
            flags = ["--recipe", "fast", *common, "--seed", seed, *FLAGS.get(name, [])]
            accuracies.setdefault(name, []).append(train(*flags, script=script).rows[-1]["test_accuracy"])
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
