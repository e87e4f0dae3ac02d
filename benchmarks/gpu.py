"""Training on one GPU: steps a second, share of the bf16 limit, seconds to accuracies, and what each measure buys.

    python benchmarks/gpu.py --data cifar10 --epochs 8 16

Needs torch, NumPy, Pillow and pyarrow, and torchvision for CIFAR-10 itself; neither Ray nor the other requirements.
Seconds of training count augmentation, every step and, apart, the evaluations; decoding and compiling are given apart.
--device cpu tries the file itself.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from record import write_json
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "ray_app"))
from vgg_ddp.batches import normalize
from vgg_ddp.config import TrainConfig
from vgg_ddp.data import Dataset, find_source, load_dataset
from vgg_ddp.fast_vgg import build_fast_model
from vgg_ddp.feeds import MemoryFeed
from vgg_ddp.model import build_model
from vgg_ddp.optim import build_optimizers, schedule

TARGETS = (0.80, 0.85, 0.90, 0.92, 0.94)
WARMUP_STEPS = 10


@dataclass(frozen=True)
class Measures:
    """What is done for speed; each can be left out."""

    bf16: bool = True
    channels_last: bool = True
    images_on_gpu: bool = True
    compile: bool = True
    no_sync: bool = True


class Training:
    """One model, its optimizers and its images."""

    def __init__(self, dataset: Dataset, config: TrainConfig, measures: Measures, device: torch.device) -> None:
        self.dataset, self.config, self.measures, self.device = dataset, config, measures, device
        self.recipe = config.chosen_recipe()
        self.feed = MemoryFeed(dataset, config, 0, 1, device if measures.images_on_gpu else torch.device("cpu"))
        self.mean, self.std = torch.tensor(dataset.mean, device=device), torch.tensor(dataset.std, device=device)
        self.steps_per_epoch = dataset.num_train // config.batch_size
        self.total_steps = config.epochs * self.steps_per_epoch
        self.dtype = torch.bfloat16 if measures.bf16 else torch.float32
        if config.recipe == "fast":
            self.model: torch.nn.Module = build_fast_model(len(dataset.class_names), config.seed)
        else:
            self.model = build_model(len(dataset.class_names), config.seed)
        memory_format = torch.channels_last if measures.channels_last else torch.contiguous_format
        self.model.to(device, memory_format=memory_format)
        self.memory_format = memory_format
        self.forward: Callable[[Tensor], Tensor] = torch.compile(self.model) if measures.compile else self.model
        self._initial = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        self.restart()

    def restart(self) -> None:
        """Begin anew with the same weights; what was compiled stays."""
        self.model.load_state_dict(self._initial)
        self.optimizers = build_optimizers(self.model, self.recipe, self.config.batch_size, self.dtype)
        self.step_number = 0

    def prepare(self, images: Tensor) -> Tensor:
        images = images.to(self.device, non_blocking=True)
        return normalize(images, self.mean, self.std, self.dtype).contiguous(memory_format=self.memory_format)

    def step(self, images: Tensor, labels: Tensor) -> None:
        inputs, labels = self.prepare(images), labels.to(self.device, non_blocking=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.measures.bf16):
            logits = self.forward(inputs)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=self.recipe.label_smoothing)
        loss.backward()
        if not self.measures.no_sync:
            loss.item()
        part = schedule(self.step_number % self.total_steps, self.total_steps, self.recipe.warmup_fraction)
        self.optimizers.step(part)
        self.step_number += 1

    def steps(self, count: int) -> None:
        """Take so many steps, from epoch to epoch."""
        epoch = 0
        while count > 0:
            for images, labels in self.feed.train_batches(epoch, max(0, self.steps_per_epoch - count)):
                self.step(images, labels)
                count -= 1
            epoch += 1

    @torch.no_grad()
    def accuracy(self) -> float:
        """Of plain test images. A device-to-host sync."""
        self.model.eval()
        correct, total = torch.zeros((), dtype=torch.int64, device=self.device), 0
        for images, labels in self.feed.test_batches():
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.measures.bf16):
                logits = self.model(self.prepare(images))
            correct += (logits.argmax(dim=1) == labels.to(self.device)).sum()
            total += len(labels)
        self.model.train()
        return correct.item() / total


def matmul_limit(device: torch.device, dtype: torch.dtype = torch.bfloat16, size: int = 8192) -> float:
    """Floating-point operations a second of a large matrix product: the best of some."""
    size = size if device.type == "cuda" else 512
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        best = min(best, seconds_of(lambda: a @ b, device))
    return 2.0 * size**3 / best


def count_flops(training: Training) -> int:
    """Floating-point operations of the matrix products and convolutions of a step, as torch counts them."""
    plain = replace(training.measures, compile=False)
    images, labels = next(training.feed.train_batches(0, 0))
    eager = Training(training.dataset, training.config, plain, training.device)
    with FlopCounterMode(display=False) as counter:
        eager.step(images, labels)
    return counter.get_total_flops()


def _now(device: torch.device) -> float:
    """Seconds on a clock, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    started = _now(device)
    work()
    return _now(device) - started


def measure_steps(training: Training, steps: int, rounds: int) -> tuple[float, float]:
    """Seconds of the first steps, in which kernels are compiled and chosen; the median of seconds a step after them."""
    warmup = seconds_of(lambda: training.steps(WARMUP_STEPS), training.device)
    rounds_of_steps = [seconds_of(lambda: training.steps(steps), training.device) / steps for _ in range(rounds)]
    return warmup, statistics.median(rounds_of_steps)


def train_to_the_end(training: Training) -> list[dict[str, float]]:
    """Train all epochs; after each, the accuracy, and the seconds of training and of evaluation so far."""
    training.restart()
    rows: list[dict[str, float]] = []
    trained = evaluated = 0.0
    for epoch in range(training.config.epochs):
        started = _now(training.device)
        for images, labels in training.feed.train_batches(epoch, 0):
            training.step(images, labels)
        at_end = _now(training.device)
        accuracy = training.accuracy()
        trained, evaluated = trained + at_end - started, evaluated + _now(training.device) - at_end
        rows.append({"epoch": epoch + 1, "accuracy": accuracy, "trained": trained, "evaluated": evaluated})
    return rows


def profile_kernels(training: Training, steps: int = 10, shown: int = 15) -> str:
    """The kernels (operators, on a CPU) that some steps spend most time in, as a table."""
    activity = ProfilerActivity.CUDA if training.device.type == "cuda" else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiler:
        training.steps(steps)
        _now(training.device)
    column = f"self_{'device' if training.device.type == 'cuda' else 'cpu'}_time_total"
    kernels = sorted(profiler.key_averages(), key=lambda kernel: -getattr(kernel, column))
    whole = sum(getattr(kernel, column) for kernel in kernels)
    lines = [f"  {whole / steps / 1000:8.3f} ms a step in all kernels"]
    for kernel in kernels[:shown]:
        spent = getattr(kernel, column)
        lines.append(
            f"  {spent / steps / 1000:8.3f} ms  {spent / whole:5.1%}  {kernel.count / steps:6.1f} x  {kernel.key[:90]}"
        )
    return "\n".join(lines)


def compare(variants: dict[str, Training], limit: float, flops: int, steps: int, rounds: int) -> dict[str, float]:
    """Seconds a step of each variant, printed with what they mean."""
    seconds = {}
    for name, training in variants.items():
        warmup, seconds[name] = measure_steps(training, steps, rounds)
        print(
            f"  {name:<24} {seconds[name] * 1000:8.3f} ms a step  "
            f"{training.config.batch_size / seconds[name]:10,.0f} images/s  "
            f"{flops / seconds[name] / limit:6.1%} of the limit  first {WARMUP_STEPS} steps {warmup:.1f} s",
            flush=True,
        )
    return seconds


def describe(rows: list[dict[str, float]]) -> str:
    """A line on a run: what it reached, and after how many seconds of training each target."""
    last = rows[-1]
    reached = ((target, next((row for row in rows if row["accuracy"] >= target), None)) for target in TARGETS)
    parts = [
        f"{last['accuracy']:.2%} in {last['trained']:.2f} s of training, {last['evaluated']:.2f} s of evaluation",
        *(f"{target:.0%}: {row['trained']:.2f} s" for target, row in reached if row),
    ]
    return "  ".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--recipe", default="fast")
    parser.add_argument("--batch-size", type=int, default=500)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--epochs", nargs="+", type=int, default=[8, 16])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    names = [field.name for field in fields(Measures)]
    parser.add_argument("--without", nargs="*", default=[], choices=names, help="measures to leave out everywhere")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = torch.device(options.device)
    started = time.perf_counter()
    dataset = load_dataset(find_source(options.data, options.data_dir), options.image_size)
    print(f"decoded {dataset.num_train + dataset.num_test:,} images in {time.perf_counter() - started:.1f} s")
    best = replace(Measures(), **dict.fromkeys(options.without, False))

    def training(measures: Measures, epochs: int, seed: int = 0) -> Training:
        config = TrainConfig(
            recipe=options.recipe,
            batch_size=options.batch_size,
            image_size=options.image_size,
            epochs=epochs,
            seed=seed,
            num_workers=1,
        )
        return Training(dataset, config, measures, device)

    variants = {"all measures": training(best, options.epochs[0])}
    for name in (name for name in names if name not in options.without):
        variants[f"without {name}"] = training(replace(best, **{name: False}), options.epochs[0])
    limit, flops = matmul_limit(device), count_flops(variants["all measures"])
    print(f"limit {limit / 1e12:.1f} TFLOP/s (bf16 product of matrices), a step takes {flops / 1e12:.3f} TFLOP\n")
    steps = compare(variants, limit, flops, options.steps, options.rounds)
    print(f"\n{profile_kernels(variants['all measures'])}\n")
    runs = []
    for epochs in options.epochs:
        for seed in options.seeds:
            run = training(best, epochs, seed)
            # What is compiled and chosen at first is no part of the training.
            measure_steps(run, WARMUP_STEPS, 1)
            run.accuracy()
            runs.append({"epochs": epochs, "seed": seed, "rows": train_to_the_end(run)})
            print(f"  {epochs} epochs, seed {seed}: {describe(runs[-1]['rows'])}", flush=True)
    settings = {name: value for name, value in vars(options).items() if name != "json"}
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    results = {"gpu": gpu, "limit": limit, "flops_of_step": flops, "seconds_of_step": steps, "runs": runs}
    write_json(options.json, {"settings": settings, **results})


if __name__ == "__main__":
    main()
