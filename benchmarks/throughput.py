"""Images per second: both recipes, a torchrun tutorial's program, and what this machine's matrix products allow.

    python benchmarks/throughput.py --rounds 3

All run in turn, so that a change of the machine's speed hits all alike; medians are compared. Ours and the tutorial's
count the whole second epoch of training: data, augmentation and optimizer, but not the evaluation. The limit is that of
large matrix products, for the products that training VGG11 needs with plain convolutions. Ours needs fewer: the share
of the limit that it takes is given for those that it does, without what transforms its maps.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from program import LIMIT_SECONDS, ROOT, train
from record import write_json

sys.path.insert(0, str(ROOT / "ray_app"))
from vgg_ddp.convolution import tiling_that_pays
from vgg_ddp.hardware import choose_precision
from vgg_ddp.model import LAYERS


def convolutions(image_size: int = 32) -> list[tuple[int, int, int]]:
    """Input channels, output channels, and height and width of the maps, of each convolution."""
    found, channels, size = [], 3, image_size
    for layer in LAYERS:
        if isinstance(layer, int):
            found.append((channels, layer, size))
            channels = layer
        else:
            size //= 2
    return found


def flops_per_image(image_size: int = 32, batch_size: int | None = None) -> float:
    """Floating-point operations to train on one image, without products with the padding's zeros.

    Convolutions are plain, or with a batch size those that the program takes for it. Forward, the gradient of the
    filters, and, but for the first layer, that of the maps cost the same.
    """
    total = 0.0
    for index, (ins, outs, size) in enumerate(convolutions(image_size)):
        # Of the three rows of a filter, one lies outside at each border.
        taps = (3 * size - 2) ** 2
        tiling = tiling_that_pays(batch_size, ins, outs, size) if batch_size else None
        if tiling:
            taps = (size // tiling.pixels * len(tiling.of_taps)) ** 2
        total += 2.0 * ins * outs * taps * (3 if index else 2)
    return total


def flops_of_muon() -> float:
    """Floating-point operations of the matrix products in one step of Muon's."""
    # Three iterations take nine products of square matrices, and two of the whole filters.
    sides = [sorted((outs, 9 * ins)) for ins, outs, _ in convolutions()]
    return sum(2.0 * (9 * short**3 + 2 * short**2 * long) for short, long in sides)


def measure_products(dtype: torch.dtype, size: int = 2048, rounds: int = 5) -> float:
    """Floating-point operations a second of large matrix products on all cores: the best of some."""
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
    torchrun = Path(sys.executable).with_name("torchrun")
    script = [str(Path(__file__).with_name("torchrun_demo.py")), "--data", data]
    command = [torchrun, "--standalone", f"--nproc-per-node={processes}", *script]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "ray_app")}
    result = subprocess.run(
        [*command, "--epochs", "2", "--batch_size", str(batch_size // processes)],
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        env=environment,
    )
    found = re.findall(r"images/s ([\d.]+)", result.stdout)
    if len(found) != 2:
        raise SystemExit(f"the tutorial's program failed: {result.stderr[-2000:]}")
    return float(found[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", default="sample")
    parser.add_argument("--batch-size", type=int, default=128, help="global; default: %(default)s")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    data, batch_size = options.data, options.batch_size
    programs = {
        "tutorial, 2 processes": lambda: run_tutorial(2, data, batch_size),
        "classic, 2 workers": lambda: run_ours(2, "classic", data, batch_size),
        "fast, 2 workers": lambda: run_ours(2, "fast", data, batch_size),
        "classic, 1 process": lambda: run_ours(0, "classic", data, batch_size),
        "fast, 1 process": lambda: run_ours(0, "fast", data, batch_size),
        "limit, fp32": lambda: measure_products(torch.float32) / flops_per_image(),
        "limit, bf16": lambda: measure_products(torch.bfloat16) / flops_per_image(),
    }
    results: dict[str, list[float]] = {name: [] for name in programs}
    for number in range(options.rounds):
        for name, program in programs.items():
            results[name].append(program())
            print(f"round {number + 1}: {name:<22} {results[name][-1]:8.1f} images/s", flush=True)
    print(f"\nmedian of {options.rounds}, {data}, global batch {batch_size}\n")
    reference = statistics.median(results["tutorial, 2 processes"])
    for name, values in results.items():
        middle = statistics.median(values)
        spread = f"{min(values):.0f} to {max(values):.0f}"
        print(f"  {name:<22} {middle:8.1f} images/s  ({spread})  {middle / reference:5.2f} x the tutorial's")
    precision = choose_precision("auto", torch.device("cpu"))
    limit = statistics.median(results[f"limit, {precision}"]) * flops_per_image()
    of_layers = flops_per_image(batch_size=batch_size)
    flops = {"classic, 1 process": of_layers, "fast, 1 process": of_layers + flops_of_muon() / batch_size}
    print()
    for name, of_image in flops.items():
        share = statistics.median(results[name]) * of_image / limit
        done = f"by the {of_image / 1e6:,.0f} MFLOP of products that it does for an image"
        print(f"  {name}: {share:.0%} of the {precision} limit, {done}")
    settings = {"data": data, "batch_size": batch_size, "precision": precision, "n": options.rounds}
    write_json(options.json, {"settings": settings, "images_per_second": results, "flops_per_image": flops_per_image()})


if __name__ == "__main__":
    main()
