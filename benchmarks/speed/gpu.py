"""Training on one GPU: steps per second, share of the bf16 limit, time to accuracy, and the gain of each optimization.

    python -m benchmarks.speed.gpu --data cifar10 --epochs 8 16

It sets up workers and takes steps with the program's own functions. Seconds of training include augmentation
and every step; evaluation, decoding, and compiling are reported separately. --device cpu tests this file itself.
"""

import argparse
import copy
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.record import write_json
from vgg_ddp.config import TrainConfig
from vgg_ddp.data.dataset import Dataset, load_dataset
from vgg_ddp.data.feeds import Batches, MemoryFeed
from vgg_ddp.data.source import find_source
from vgg_ddp.job import Inputs, Job
from vgg_ddp.run.storage import Folder
from vgg_ddp.worker.setup import set_up
from vgg_ddp.worker.train import evaluate, train, train_step

TARGETS = (0.80, 0.85, 0.90, 0.92, 0.94)
WARMUP_STEPS = 10


@dataclass(frozen=True)
class Measures:
    """The program's optimizations for speed; each can be turned off."""

    bf16: bool = True
    channels_last: bool = True
    images_on_gpu: bool = True
    compile: bool = True
    no_sync: bool = True


class CopyingFeed(MemoryFeed):
    """Keeps images in CPU memory, and copies each batch to the device."""

    def __init__(self, dataset: Dataset, config: TrainConfig, device: torch.device) -> None:
        super().__init__(dataset, config, 0, 1, torch.device("cpu"))
        self._target = device

    def train_batches(self, epoch: int, first_step: int) -> Batches:
        return self._copied(super().train_batches(epoch, first_step))

    def test_batches(self) -> Batches:
        return self._copied(super().test_batches())

    def _copied(self, batches: Batches) -> Batches:
        for images, labels in batches:
            yield images.to(self._target, non_blocking=True), labels.to(self._target, non_blocking=True)


class Training:
    """The only rank of a run, set up like the program does, with some optimizations turned off."""

    def __init__(self, dataset: Dataset, config: TrainConfig, measures: Measures, use_gpu: bool) -> None:
        self.dataset, self.measures, self.use_gpu = dataset, measures, use_gpu
        self.config = replace(config, compile=measures.compile, precision="bf16" if measures.bf16 else "fp32")
        run = Folder.at(tempfile.mkdtemp(dir=config.storage_path))
        self.worker, self.state = set_up(Job(self.config, Inputs(dataset), run, use_gpu, is_local=True))
        if not measures.images_on_gpu:
            self.worker = replace(self.worker, feed=CopyingFeed(dataset, self.config, self.device))
        if not measures.channels_last:
            self.state.model.to(memory_format=torch.contiguous_format)
            self.state.model.register_forward_pre_hook(contiguous)
        self._start = copy.deepcopy(self.state.snapshot())

    @property
    def device(self) -> torch.device:
        return self.worker.device

    def restart(self) -> None:
        """Return to the first step; compiled code is kept."""
        self.state.restore(copy.deepcopy(self._start), rank=0)

    def step(self, images: Tensor, labels: Tensor) -> None:
        # Speed is measured for more steps than the run has: past its end, the learning rate starts over.
        self.state.step %= self.worker.total_steps
        train_step(self.worker, self.state, images, labels)
        if not self.measures.no_sync:
            self.state.sums.values[0].item()

    def steps(self, count: int) -> None:
        """Take this many steps, over as many epochs as needed."""
        epoch = 0
        while count > 0:
            for images, labels in self.worker.feed.train_batches(epoch, max(0, self.worker.steps_per_epoch - count)):
                self.step(images, labels)
                count -= 1
            epoch += 1

    def finish(self) -> list[dict[str, float]]:
        """Train all epochs from the start with the program's loop; return the rows of metrics."""
        self.restart()
        outcome = train(self.worker, self.state)
        assert outcome is None, outcome
        self.worker.saver.wait()
        return self.state.rows


def contiguous(_model: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    """A forward hook that converts images (N, C, H, W) to torch's default memory format."""
    return (inputs[0].contiguous(),)


def matmul_limit(device: torch.device, dtype: torch.dtype = torch.bfloat16, size: int = 8192) -> float:
    """Floating-point operations per second of a large matrix product: the best of 10 runs."""
    size = size if device.type == "cuda" else 512
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        best = min(best, seconds_of(lambda: a @ b, device))
    return 2.0 * size**3 / best


def count_flops(training: Training) -> int:
    """Floating-point operations of the matrix products and convolutions of a step, as torch counts them."""
    eager = Training(training.dataset, training.config, replace(training.measures, compile=False), training.use_gpu)
    images, labels = next(eager.worker.feed.train_batches(0, 0))
    with FlopCounterMode(display=False) as counter:
        eager.step(images, labels)
    return counter.get_total_flops()


def _now(device: torch.device) -> float:
    """The time in seconds, after the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    started = _now(device)
    work()
    return _now(device) - started


def measure_steps(training: Training, steps: int, rounds: int) -> tuple[float, float]:
    """Seconds of the first steps, which compile and choose kernels; then the median of seconds per step."""
    warmup = seconds_of(lambda: training.steps(WARMUP_STEPS), training.device)
    rounds_of_steps = [seconds_of(lambda: training.steps(steps), training.device) / steps for _ in range(rounds)]
    return warmup, statistics.median(rounds_of_steps)


def describe_epochs(rows: list[dict[str, float]], started: float) -> list[dict[str, float]]:
    """After each epoch: the accuracy, and the seconds of training and of everything else so far."""
    trained, epochs = 0.0, []
    for row in rows:
        trained += row["seconds"]
        others = row["time"] - started - trained
        epochs.append({"epoch": row["epoch"], "accuracy": row["test_accuracy"], "trained": trained, "other": others})
    return epochs


def profile_kernels(training: Training, steps: int = 10, shown: int = 15) -> str:
    """The kernels (on a CPU, the operators) that take most of the time of some steps, as a table."""
    activity = ProfilerActivity.CUDA if training.device.type == "cuda" else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiler:
        training.steps(steps)
        _now(training.device)
    column = f"self_{'device' if training.device.type == 'cuda' else 'cpu'}_time_total"
    kernels = sorted(profiler.key_averages(), key=lambda kernel: -getattr(kernel, column))
    whole = sum(getattr(kernel, column) for kernel in kernels)
    lines = [f"  {whole / steps / 1000:8.3f} ms per step in all kernels"]
    for kernel in kernels[:shown]:
        spent = getattr(kernel, column)
        lines.append(
            f"  {spent / steps / 1000:8.3f} ms  {spent / whole:5.1%}  {kernel.count / steps:6.1f} x  {kernel.key[:90]}"
        )
    return "\n".join(lines)


def compare(variants: dict[str, Training], limit: float, flops: int, steps: int, rounds: int) -> dict[str, float]:
    """Measure the seconds per step of each variant, and print them."""
    seconds = {}
    for name, training in variants.items():
        warmup, seconds[name] = measure_steps(training, steps, rounds)
        print(
            f"  {name:<24} {seconds[name] * 1000:8.3f} ms per step  "
            f"{training.config.global_batch / seconds[name]:10,.0f} images/s  "
            f"{flops / seconds[name] / limit:6.1%} of the limit  first {WARMUP_STEPS} steps {warmup:.1f} s",
            flush=True,
        )
    return seconds


def describe(rows: list[dict[str, float]]) -> str:
    """One line about a run: its final accuracy, and the seconds of training to each target."""
    last = rows[-1]
    reached = ((target, next((row for row in rows if row["accuracy"] >= target), None)) for target in TARGETS)
    parts = [
        f"{last['accuracy']:.2%} in {last['trained']:.2f} s of training",
        f"{last['other']:.2f} s of evaluation and checkpoints",
        *(f"{target:.0%}: {row['trained']:.2f} s" for target, row in reached if row),
    ]
    return "  ".join(parts)


def benchmark(options: argparse.Namespace, use_gpu: bool, folder: str) -> None:
    """Measure, print, and write the results; run folders go into `folder`. Call it in a worker of Ray Train."""
    names = [field.name for field in fields(Measures)]
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
            num_workers=0,
            storage_path=folder,
        )
        return Training(dataset, config, measures, use_gpu)

    variants = {"all measures": training(best, options.epochs[0])}
    for name in (name for name in names if name not in options.without):
        variants[f"without {name}"] = training(replace(best, **{name: False}), options.epochs[0])
    device = variants["all measures"].device
    limit, flops = matmul_limit(device), count_flops(variants["all measures"])
    print(f"limit {limit / 1e12:.1f} TFLOP/s (bf16 matrix product), a step takes {flops / 1e12:.3f} TFLOP\n")
    steps = compare(variants, limit, flops, options.steps, options.rounds)
    print(f"\n{profile_kernels(variants['all measures'])}\n")
    runs = []
    for epochs in options.epochs:
        for seed in options.seeds:
            run = training(best, epochs, seed)
            # Compiling and selecting kernels does not count as training.
            measure_steps(run, WARMUP_STEPS, 1)
            evaluate(run.worker, run.state)
            started = time.time()
            runs.append({"epochs": epochs, "seed": seed, "rows": describe_epochs(run.finish(), started)})
            print(f"  {epochs} epochs, seed {seed}: {describe(runs[-1]['rows'])}", flush=True)
    settings = {name: value for name, value in vars(options).items() if name != "json"}
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    results = {"gpu": gpu, "limit": limit, "flops_of_step": flops, "seconds_of_step": steps, "runs": runs}
    write_json(options.json, {"settings": settings, **results})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--recipe", default="fast")
    parser.add_argument("--batch-size", type=int, default=500)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--epochs", nargs="+", type=int, default=[8, 16])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    names = [field.name for field in fields(Measures)]
    parser.add_argument("--without", nargs="*", default=[], choices=names, help="optimizations to turn off in all runs")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    use_gpu = options.device == "cuda"
    if not use_gpu:
        # If Ray Train's local mode saw GPUs, it would choose NCCL.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    with tempfile.TemporaryDirectory() as folder:
        TorchTrainer(
            lambda _: benchmark(options, use_gpu, folder),
            train_loop_config={},
            scaling_config=ScalingConfig(num_workers=0, use_gpu=use_gpu),
            run_config=RunConfig(name="gpu"),
        ).fit()


if __name__ == "__main__":
    main()
