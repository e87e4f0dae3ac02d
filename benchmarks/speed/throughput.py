"""Training images per second of both recipes, of a torchrun tutorial, and at the limit of this machine's matmuls.

    python -m benchmarks.speed.throughput --rounds 3

All programs take turns, so that changes in the machine's speed affect all of them, and medians are compared. Our
numbers and the tutorial's cover the second epoch of training: data, augmentation, and optimizer, but not evaluation.
The limit is the speed of large matrix products, divided by the operations that VGG11 needs per image with plain
convolutions. Winograd convolutions need fewer, so the share of the limit is computed from the operations that our
programs actually perform, without the transforms.
"""

import re
import statistics
import subprocess
import time
from collections.abc import Callable

import torch

from benchmarks.program import LIMIT_SECONDS, torchrun_command, train
from benchmarks.record import new_parser, write_json
from vgg_ddp.machine.precision import choose_precision
from vgg_ddp.model.conv import tiling_that_pays
from vgg_ddp.model.vgg import LAYERS


def convolutions(image_size: int = 32) -> list[tuple[int, int, int]]:
    """(input channels, output channels, height and width of the maps) of each convolution in VGG11."""
    found, channels, size = [], 3, image_size
    for layer in LAYERS:
        if isinstance(layer, int):
            found.append((channels, layer, size))
            channels = layer
        else:
            size //= 2
    return found


def flops_per_image(image_size: int = 32, batch_size: int | None = None) -> float:
    """Floating-point operations to train on one image, without products with padding.

    Convolutions are plain, or with a batch size, those that the program chooses for it. The forward pass, the gradient
    of the filters, and (except in the first layer) the gradient of the maps cost the same.
    """
    total = 0.0
    for index, (ins, outs, size) in enumerate(convolutions(image_size)):
        # At each border, one of a filter's three rows is outside the image.
        taps = (3 * size - 2) ** 2
        tiling = tiling_that_pays(batch_size, ins, outs, size) if batch_size else None
        if tiling:
            taps = (size // tiling.pixels * len(tiling.of_taps)) ** 2
        total += 2.0 * ins * outs * taps * (3 if index else 2)
    return total


def flops_of_muon() -> float:
    """Floating-point operations of the matrix products in one Muon step."""
    # Three iterations take nine products of square matrices, and two with all filters.
    sides = [sorted((outs, 9 * ins)) for ins, outs, _ in convolutions()]
    return sum(2.0 * (9 * short**3 + 2 * short**2 * long) for short, long in sides)


def measure_products(dtype: torch.dtype, size: int = 2048, rounds: int = 5) -> float:
    """Floating-point operations per second of large matrix products on all cores: the best of several."""
    a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(rounds):
        started = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - started)
    return 2.0 * size**3 / best


def run_ours(num_workers: int, recipe: str, data: str, batch_size: int) -> float:
    """Images per second of the second epoch."""
    trained = train(
        *("--num-workers", num_workers, "--recipe", recipe, "--data", data, "--epochs", 2, "--batch-size", batch_size)
    )
    return trained.rows[1]["images_per_second"]


def run_tutorial(processes: int, data: str, batch_size: int) -> float:
    """Images per second of the second epoch."""
    command = [*torchrun_command(processes), "-m", "benchmarks.speed.torchrun_demo", "--data", data]
    command += ["--epochs", 2, "--batch_size", batch_size // processes]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=LIMIT_SECONDS)
    found = re.findall(r"images/s ([\d.]+)", result.stdout)
    if len(found) != 2:
        raise SystemExit(f"the tutorial's program failed: {result.stderr[-2000:]}")
    return float(found[1])


def measure(data: str, batch_size: int, rounds: int) -> dict[str, list[float]]:
    """Images per second of each program, by round."""
    programs: dict[str, Callable[[], float]] = {
        "tutorial, 2 processes": lambda: run_tutorial(2, data, batch_size),
        "classic, 2 workers": lambda: run_ours(2, "classic", data, batch_size),
        "fast, 2 workers": lambda: run_ours(2, "fast", data, batch_size),
        "classic, 1 process": lambda: run_ours(0, "classic", data, batch_size),
        "fast, 1 process": lambda: run_ours(0, "fast", data, batch_size),
        "limit, fp32": lambda: measure_products(torch.float32) / flops_per_image(),
        "limit, bf16": lambda: measure_products(torch.bfloat16) / flops_per_image(),
    }
    results: dict[str, list[float]] = {name: [] for name in programs}
    for number in range(rounds):
        for name, program in programs.items():
            results[name].append(program())
            print(f"round {number + 1}: {name:<22} {results[name][-1]:8.1f} images/s", flush=True)
    return results


def print_shares(results: dict[str, list[float]], precision: str, batch_size: int) -> None:
    """Print which share of the matmul limit our programs reach in one process."""
    limit = statistics.median(results[f"limit, {precision}"]) * flops_per_image()
    of_layers = flops_per_image(batch_size=batch_size)
    flops = {"classic, 1 process": of_layers, "fast, 1 process": of_layers + flops_of_muon() / batch_size}
    for name, of_image in flops.items():
        share = statistics.median(results[name]) * of_image / limit
        print(f"  {name}: {share:.0%} of the {precision} limit, at {of_image / 1e6:,.0f} MFLOP of products per image")


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", default="sample")
    parser.add_argument("--batch-size", type=int, default=128, help="global; default: %(default)s")
    options = parser.parse_args()
    results = measure(options.data, options.batch_size, options.rounds)
    print(f"\nmedian of {options.rounds}, {options.data}, global batch {options.batch_size}\n")
    reference = statistics.median(results["tutorial, 2 processes"])
    for name, values in results.items():
        median = statistics.median(values)
        spread = f"{min(values):.0f} to {max(values):.0f}"
        print(f"  {name:<22} {median:8.1f} images/s  ({spread})  {median / reference:5.2f} x the tutorial")
    precision = choose_precision("auto", torch.device("cpu"))
    print()
    print_shares(results, precision, options.batch_size)
    settings = {"data": options.data, "batch_size": options.batch_size, "precision": precision, "n": options.rounds}
    write_json(options.json, {"settings": settings, "images_per_second": results, "flops_per_image": flops_per_image()})


if __name__ == "__main__":
    main()
