"""Take steps on a fake GPU, and print what they did as JSON: python -m support.gpu_steps count|compare|fail.

Without Ray, as benchmarks.speed.gpu_training sets it up.
"""

import json
import sys

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.speed.gpu_training import Training
from fake_cuda.counts import counted
from vgg_ddp.config import TrainConfig
from vgg_ddp.data.dataset import Dataset, Split
from vgg_ddp.model import fast_vgg, vgg
from vgg_ddp.worker import model as worker_model
from vgg_ddp.worker.graphs import EAGER_STEPS

# VGG11's layers with fewer channels, whose operators take less time on a CPU.
NARROW = (8, "M", 8, "M", 16, 16, "M", 8, 8, "M", 8, 512, "M")


def random_images(count: int, size: int) -> Dataset:
    """Images of random colors and classes."""
    generator = np.random.default_rng(0)
    splits = [
        Split(
            generator.integers(0, 256, (number, size, size, 3), dtype=np.uint8),
            generator.integers(0, 10, number),
        )
        for number in (count, 20)
    ]
    return Dataset("random", *splits, tuple("abcdefghij"), (120.0, 120.0, 120.0), (60.0, 60.0, 60.0))


def count() -> dict[str, dict[str, float]]:
    """Launches and synchronizations of a step at full size: eager, captured, and replayed."""
    found = {}
    for recipe in ("fast", "classic"):
        config = TrainConfig(num_workers=0, recipe=recipe, batch_size=512, epochs=8)
        for variant in ("eager", "graphed"):
            training = Training(random_images(512 * (EAGER_STEPS + 3), 32), config, variant)
            training.steps(EAGER_STEPS + 2)
            with counted() as counts:
                training.step()
            illegal = counts.starting_with("illegal")
            found[f"{recipe}, {variant}"] = {
                "launches": counts.launches,
                "synchronizations": counts.synchronizations,
                "illegal": sum(illegal.values()),
            }
    return found


def compare() -> dict[str, float]:
    """Number of tensors that differ between eager and graphed steps, and how far the weights moved."""
    fast_vgg.LAYERS = vgg.LAYERS = NARROW
    cases = {
        "fast in bf16": TrainConfig(num_workers=0, recipe="fast", precision="bf16", batch_size=8, epochs=10),
        # The image size changes, so a second graph is captured.
        "classic at two sizes": TrainConfig(
            num_workers=0,
            precision="fp32",
            batch_size=8,
            epochs=10,
            recipe="classic",
            image_size=64,
            half_size_epochs=3,
        ),
    }
    found = {}
    for name, config in cases.items():
        results = []
        for variant in ("eager", "graphed"):
            training = Training(random_images(80, config.image_size), config, variant)
            # As in the benchmark, whose graphs are captured before the first step that counts.
            training.warm_up()
            training.restart()
            before = training.state.model.state_dict()["classifier.weight"].clone()
            training.steps(100 if config.recipe == "fast" else 40)
            tensors = [*training.state.model.state_dict().values(), training.state.sums.values]
            results.append([tensor.cpu() for tensor in tensors])
        found[f"{name}: different"] = sum(not torch.equal(*pair) for pair in zip(*results, strict=True))
        moved = training.state.model.state_dict()["classifier.weight"] - before
        found[f"{name}: moved"] = float(moved.abs().max())
    return found


class Waiting(nn.Module):
    """A model that waits for the GPU, which a graph cannot do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 10)

    def forward(self, images: Tensor) -> Tensor:
        means = images.mean(dim=(2, 3))
        return self.layer(means) * (2.0 if means.sum().item() > 1e9 else 1.0)


def fail() -> dict[str, float]:
    """Train a model that cannot be captured."""
    worker_model.build_model = lambda *_: Waiting()
    config = TrainConfig(num_workers=0, recipe="classic", precision="fp32", batch_size=8, epochs=2)
    training = Training(random_images(80, 32), config, "graphed")
    training.steps(10)
    return {"images": float(training.state.sums.values[2])}


if __name__ == "__main__":
    print(json.dumps({"count": count, "compare": compare, "fail": fail}[sys.argv[1]]()))
