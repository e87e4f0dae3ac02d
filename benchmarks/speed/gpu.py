"""Training on one GPU: synchronizations, ms per step, kernels, graphs against eager steps, and time to accuracy.

    python -m benchmarks.speed.gpu --data cifar10

It takes the program's own steps, and needs no Ray. Each item prints a line of JSON as soon as it is measured, or why it
failed. The most important items come first; those that would start after --limit-seconds are left out.
"""

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.record import new_parser, write_json
from benchmarks.speed.gpu_training import DEVICE, Training, Variant
from vgg_ddp.config import TrainConfig
from vgg_ddp.data.dataset import Dataset, load_dataset
from vgg_ddp.data.source import find_source
from vgg_ddp.run.checkpoint import copy_to_host
from vgg_ddp.worker.step import evaluate

TARGETS = (0.90, 0.92, 0.94)
RECIPES = ("fast", "classic")
COMPILE_SECONDS = 120
Item = tuple[str, Callable[[], dict[str, Any]]]


class Benchmark:
    """Measures each item on the same images, decoded once for each size."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self._datasets: dict[int, Dataset] = {}

    def dataset(self, image_size: int) -> Dataset:
        if image_size not in self._datasets:
            self._datasets[image_size] = load_dataset(find_source(self.options.data, self.options.data_dir), image_size)
        return self._datasets[image_size]

    def training(
        self, recipe: str, variant: Variant = "graphed", image_size: int = 32, epochs: int = 8, seed: int = 0
    ) -> Training:
        size = self.options.batch_size
        config = TrainConfig(
            num_workers=0, recipe=recipe, epochs=epochs, seed=seed, image_size=image_size, batch_size=size
        )
        training = Training(self.dataset(image_size), config, variant)
        training.warm_up()
        return training

    def items(self) -> Iterator[Item]:
        """Name and measurement of each item, the most important ones first."""
        options, variants = self.options, ("graphed", "eager", "graphed, Muon per filter")
        sizes = options.image_sizes
        yield "synchronizations", self.synchronizations
        for recipe in RECIPES:
            yield f"weights, {recipe}", lambda recipe=recipe: self.weights(recipe)
        for recipe, size, variant in product(RECIPES, sizes, variants):
            if recipe == "fast" or variant != "graphed, Muon per filter":
                name = f"step, {recipe}, {size} pixels, {variant}"
                yield name, lambda r=recipe, v=variant, s=size: self.step(r, v, s)
        for epochs, seed in product(options.epochs, options.seeds):
            yield f"accuracy, {epochs} epochs, seed {seed}", lambda e=epochs, s=seed: self.accuracy(e, s)
        for recipe in RECIPES:
            yield f"epoch, {recipe}", lambda recipe=recipe: self.epoch(recipe)
            yield f"kernels, {recipe}", lambda recipe=recipe: self.kernels(recipe)
        for recipe, variant in product(RECIPES, ("compiled", "graphed and compiled")):
            if not options.without_compiled:
                name = f"step, {recipe}, {sizes[0]} pixels, {variant}"
                yield name, lambda r=recipe, v=variant: self.step(r, v, sizes[0])

    def synchronizations(self) -> dict[str, Any]:
        """Take 20 steps of each recipe, eager and graphed, in torch's mode that fails if the host waits."""
        for recipe, variant in product(RECIPES, ("eager", "graphed")):
            training = self.training(recipe, variant)
            training.start_epoch(0)
            if variant == "eager":
                # The first batch of an epoch copies its plan to the GPU.
                training.step()
            torch.cuda.set_sync_debug_mode("error")
            try:
                for _ in range(min(20, training.worker.steps_per_epoch - 1)):
                    training.step()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return {"none_in": "20 steps of each recipe, eager and graphed"}

    def weights(self, recipe: str) -> dict[str, Any]:
        """The largest difference of any weight between eager and graphed training after 100 steps."""
        models = []
        for variant in ("eager", "graphed"):
            training = self.training(recipe, variant)
            training.restart()
            training.steps(self.options.compared_steps)
            models.append([weight.detach().clone() for weight in training.state.model.parameters()])
        differences = [float((eager - graphed).abs().max()) for eager, graphed in zip(*models, strict=True)]
        return {"steps": self.options.compared_steps, "largest_difference": max(differences)}

    def step(self, recipe: str, variant: Variant, image_size: int) -> dict[str, Any]:
        """Milliseconds per step, with its share of the epochs' plans: the median of several rounds.

        Also the seconds of the first steps, which compile and capture.
        """
        # Earlier items leave cycles of objects that hold their graphs' memory.
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        self.dataset(image_size)
        seconds_first, training = _seconds(lambda: self.training(recipe, variant, image_size))
        count = self.options.steps
        rounds = [_seconds(lambda: training.steps(count))[0] / count for _ in range(self.options.rounds)]
        milliseconds = statistics.median(rounds) * 1000
        return {
            "ms": milliseconds,
            "images_per_second": training.worker.config.global_batch / milliseconds * 1000,
            "first_steps_seconds": seconds_first,
            "memory_gib": torch.cuda.max_memory_allocated() / 2**30,
        }

    def accuracy(self, epochs: int, seed: int) -> dict[str, Any]:
        """Accuracy and seconds after all epochs of `fast`; seconds of training until each target is reached."""
        rows = self.training("fast", epochs=epochs, seed=seed).finish()
        reached = {
            target: next((row["trained"] for row in rows if row["accuracy"] >= target), None) for target in TARGETS
        }
        return rows[-1] | {"seconds_to": {f"{target:.0%}": seconds for target, seconds in reached.items()}}

    def epoch(self, recipe: str) -> dict[str, Any]:
        """Where the time of an epoch goes, in milliseconds."""
        training = self.training(recipe)
        steps = training.worker.steps_per_epoch
        parts: dict[str, Callable[[], object]] = {
            "plan": lambda: training.start_epoch(1),
            "steps": lambda: [training.step() for _ in range(steps)],
            "decision": lambda: training.worker.control.decide(training.state.sums),
            "sums": training.state.sums.total,
            "evaluation": lambda: evaluate(training.worker, training.state, "test"),
            "checkpoint_copy": lambda: copy_to_host(training.state.snapshot()),
        }
        return {name: _seconds(part)[0] * 1000 for name, part in parts.items()}

    def kernels(self, recipe: str) -> dict[str, Any]:
        """Kernels per step and their time, and those that take longest."""
        training = self.training(recipe)
        steps = min(10, training.worker.steps_per_epoch)
        training.start_epoch(0)
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            for _ in range(steps):
                training.step()
            torch.cuda.synchronize()
        kernels = [event for event in profiler.key_averages() if event.self_device_time_total > 0]
        kernels.sort(key=lambda event: -event.self_device_time_total)
        slowest = [
            {"name": event.key[:80], "ms": event.self_device_time_total / steps / 1000, "calls": event.count / steps}
            for event in kernels[:15]
        ]
        return {
            "kernels_and_copies": sum(event.count for event in kernels) / steps,
            "ms": sum(event.self_device_time_total for event in kernels) / steps / 1000,
            "slowest": slowest,
        }


def _seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that some work takes, including that of the GPU, and its result."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    result = work()
    torch.cuda.synchronize()
    return time.perf_counter() - started, result


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--batch-size", type=int, help="default: the recipe's")
    parser.add_argument("--image-sizes", nargs="+", type=int, default=[32, 64])
    parser.add_argument("--epochs", nargs="+", type=int, default=[8, 16, 30])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compared-steps", type=int, default=100, help="steps after which weights are compared")
    parser.add_argument("--without-compiled", action="store_true", help="do not measure torch.compile")
    parser.add_argument("--limit-seconds", type=float, default=540, help="start no item later than this")
    options = parser.parse_args()
    started, results, late = time.perf_counter(), {}, []
    settings = {name: value for name, value in vars(options).items() if name != "json"}
    summary = {"gpu": torch.cuda.get_device_name(DEVICE), "settings": settings, "items": results}
    for name, measure in Benchmark(options).items():
        # Compiling takes minutes.
        seconds_left = options.limit_seconds - (time.perf_counter() - started) - COMPILE_SECONDS * ("compiled" in name)
        if seconds_left < 0:
            late.append(name)
            continue
        try:
            results[name] = measure()
        except RuntimeError as error:
            # The other items are worth measuring, too.
            results[name] = {"error": str(error)[:500]}
        results[name]["at_seconds"] = round(time.perf_counter() - started, 1)
        print(json.dumps({"item": name, **results[name]}), flush=True)
        if options.json:
            options.json.write_text(json.dumps(summary, indent=2) + "\n")
    print(json.dumps({"gpu": summary["gpu"], "left_out": late}), flush=True)
    write_json(options.json, summary)
    if any("error" in result for result in results.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
