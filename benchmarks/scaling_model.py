"""Predict training on many GPUs from what was measured on two machines, and say where the prediction ends.

    python benchmarks/scaling_model.py --network network.json --controller controller.json

network.json and controller.json are what network.py and controller.py write. Fitted to them are the part of a link that
gradients really get, the part of the computing that hides them, and what the controller takes for each worker; the fit
is printed next to the measurements. Everything else is an argument, with the assumption in its help text.
"""

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from record import write_json
from throughput import flops_per_image

# In fp32, of VGG11 with ten classes.
GRADIENT_BYTES = 4 * 9_231_114
GPUS = (1, 8, 16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class Link:
    """How gradients cross a link.

    Attributes:
        efficiency: part of the link's speed that they get.
        hidden: part of a step's computing during which they may cross.
        exposed: part of them that crosses when nothing is left to compute.
    """

    efficiency: float
    hidden: float
    exposed: float

    def seconds(self, machines: int, bytes_per_second: float, latency: float) -> float:
        """Of a ring all-reduce: each machine sends 2 (n - 1) / n of the gradients, in 2 (n - 1) messages."""
        if machines == 1:
            return 0.0
        volume = 2 * (machines - 1) / machines * GRADIENT_BYTES
        return volume / (bytes_per_second * self.efficiency) + 2 * (machines - 1) * latency

    def exposed_seconds(self, all_reduce: float, compute: float) -> float:
        """What remains of an all-reduce after the computing that hides it."""
        return max(self.exposed * all_reduce, all_reduce - self.hidden * compute)


@dataclass(frozen=True)
class Measured:
    """A link of network.py's: its real speed, the seconds of a step, and of one that sends nothing."""

    rate: str
    bytes_per_second: float
    step: float
    compute: float


def read_network(path: Path) -> list[Measured]:
    found = []
    for rate, result in json.loads(path.read_text())["rates"].items():
        row = result["rows"][0]
        found.append(
            Measured(
                rate,
                result["bits_per_second"] / 8,
                statistics.median(row["seconds"]),
                statistics.median(row["seconds_without_communication"]),
            )
        )
    return found


def fit(measured: Sequence[Measured]) -> Link:
    """The link whose steps on two machines differ least from the measured ones, relative to these."""

    def error(link: Link) -> float:
        return sum((predict_pair(link, each) / each.step - 1) ** 2 for each in measured)

    grid = [number / 50 for number in range(51)]
    return min((Link(*values) for values in product(grid[10:], grid, grid)), key=error)


def predict_pair(link: Link, measured: Measured) -> float:
    """Seconds of a step on the two machines of a measurement."""
    all_reduce = link.seconds(2, measured.bytes_per_second, 0.0)
    return measured.compute + link.exposed_seconds(all_reduce, measured.compute)


@dataclass(frozen=True)
class Prediction:
    """What is predicted of a number of GPUs.

    Attributes:
        limits: what each part allows, in images per second; the least of them counts.
    """

    gpus: int
    batch_of_gpu: float
    limits: dict[str, float]
    efficiency: float

    @property
    def images_per_second(self) -> float:
        return min(self.limits.values())

    @property
    def bottleneck(self) -> str:
        return min(self.limits, key=lambda name: self.limits[name])


def predict(gpus: int, link: Link, options: argparse.Namespace) -> Prediction:
    """Speed of a number of GPUs, from all that has to keep pace."""
    nodes = math.ceil(gpus / options.gpus_of_node)
    of_gpu = options.global_batch / gpus if options.global_batch else float(options.batch_of_gpu)
    alone = options.gpu_tflops * 1e12 * options.utilisation / flops_per_image()
    compute = of_gpu / alone + options.step_overhead
    # Within a node, then between nodes: as many rings as a node has links of that speed.
    inside = link.seconds(min(gpus, options.gpus_of_node), options.node_link_gbytes * 1e9, options.latency)
    between = link.seconds(nodes, options.link_gbit * 1e9 / 8, options.latency)
    step = compute + link.exposed_seconds(inside + between, compute)
    step *= 1 + options.checkpoint_seconds / options.checkpoint_every_seconds
    of_one = options.global_batch or options.batch_of_gpu
    linear = gpus * of_one / (of_one / alone + options.step_overhead)
    limits = {"training": gpus * of_gpu / step}
    if not options.from_memory:
        limits["decoding"] = nodes * options.cores_of_node * options.decoded_by_core
        limits["storage"] = nodes * options.storage_gbit_of_node * 1e9 / 8 / options.image_bytes
    return Prediction(gpus, of_gpu, limits, min(limits.values()) / linear)


def read_slope(path: Path) -> tuple[float, float]:
    """Of the controller: the part of a core that it takes at least, and for each worker more."""
    results = json.loads(path.read_text())
    least = min(results["shares"], key=int)
    base = statistics.median(sample["controller"] for sample in results["shares"][least])
    return base, results["slopes"]["controller"]


def describe_limits(
    predictions: Sequence[Prediction], controller: tuple[float, float] | None, options: argparse.Namespace
) -> list[str]:
    """Where the numbers above stop to mean anything."""
    lines = []
    node = next(prediction for prediction in predictions if prediction.gpus > options.gpus_of_node)
    of_node = node.limits["training"] / math.ceil(node.gpus / options.gpus_of_node)
    lines.append(
        f"with {node.gpus} GPUs each node trains on {of_node:,.0f} images/s: streamed, they take "
        f"{of_node / options.decoded_by_core:,.0f} cores to decode, and what S3 gives a node is enough for images of "
        f"{options.storage_gbit_of_node * 1e9 / 8 / of_node:,.0f} bytes"
    )
    large = [prediction for prediction in predictions if prediction.gpus * prediction.batch_of_gpu > 5000]
    if large:
        lines.append(
            f"from {large[0].gpus} GPUs on, the global batch is above 5,000, a tenth of CIFAR-10: more than SGD gains "
            "from there; keep it with --global-batch, or train on more images"
        )
    tiny = [prediction for prediction in predictions if prediction.batch_of_gpu < 16]
    if tiny:
        lines.append(
            f"from {tiny[0].gpus} GPUs on, a GPU has fewer than 16 images a step: it will not reach its utilisation"
        )
    if controller:
        base, of_worker = controller
        lines.append(
            f"the controller takes {base + of_worker * predictions[-1].gpus:.1%} of a core of the head node with "
            f"{predictions[-1].gpus} workers, and a whole one with {(1 - base) / of_worker:,.0f}"
            if of_worker > 0
            else "the controller's load does not grow with the workers"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--network", type=Path, required=True, help="what network.py wrote")
    add("--controller", type=Path, help="what controller.py wrote")
    add("--batch-of-gpu", type=int, default=512, help="images a step and GPU (weak scaling); default: %(default)s")
    add("--global-batch", type=int, help="instead: images a step over all GPUs (strong scaling)")
    add("--gpu-tflops", type=float, default=70.0, help="peak in bf16; default: %(default)s (A10G)")
    add("--utilisation", type=float, default=0.3, help="part of the peak that training gets; assumed: %(default)s")
    add("--step-overhead", type=float, default=0.002, help="seconds a step, whatever its size; assumed: %(default)s")
    add("--gpus-of-node", type=int, default=4, help="default: %(default)s (g5.12xlarge)")
    add("--cores-of-node", type=int, default=24, help="default: %(default)s")
    add("--link-gbit", type=float, default=40.0, help="network of a node; default: %(default)s")
    add(
        "--node-link-gbytes", type=float, default=10.0, help="between GPUs of a node, GB/s; default: %(default)s (PCIe)"
    )
    add("--latency", type=float, default=30e-6, help="seconds of a message; assumed: %(default)s")
    add("--decoded-by-core", type=float, default=4100.0, help="images a second; default: as ingest.py measured it")
    add("--image-bytes", type=float, default=900.0, help="of an encoded image; default: %(default)s (32 x 32, JPEG)")
    add("--storage-gbit-of-node", type=float, default=20.0, help="what a node reads from S3; assumed: %(default)s")
    add("--from-memory", action="store_true", help="images are decoded before training")
    add("--checkpoint-seconds", type=float, default=0.05, help="default: as checkpoints.py measured it")
    add("--checkpoint-every-seconds", type=float, default=300.0)
    add("--json", type=Path)
    options = parser.parse_args()
    measured = read_network(options.network)
    link = fit(measured)
    print(
        f"Two machines: gradients get {link.efficiency:.0%} of a link, {link.hidden:.0%} of the computing may hide "
        f"them, {link.exposed:.0%} of them cannot be hidden.\n"
    )
    for each in measured:
        predicted = predict_pair(link, each)
        print(
            f"  {each.rate:<8} {each.step:6.3f} s a step measured, {predicted:6.3f} s predicted "
            f"({predicted / each.step - 1:+.1%}); {each.compute:6.3f} s without communication"
        )
    predictions = [predict(gpus, link, options) for gpus in GPUS]
    print(f"\n{'GPUs':>5}  {'batch':>7}  {'images/s':>12}  {'of linear':>9}  limited by")
    for prediction in predictions:
        print(
            f"{prediction.gpus:>5}  {prediction.gpus * prediction.batch_of_gpu:>7,.0f}  "
            f"{prediction.images_per_second:>12,.0f}  {prediction.efficiency:>9.0%}  {prediction.bottleneck}"
        )
    controller = read_slope(options.controller) if options.controller else None
    print("\nWhere this ends:", *describe_limits(predictions, controller, options), sep="\n- ")
    write_json(options.json, _as_json(link, predictions, options))


def _as_json(link: Link, predictions: Sequence[Prediction], options: argparse.Namespace) -> dict[str, Any]:
    settings = {name: value for name, value in vars(options).items() if not isinstance(value, Path)}
    rows = [{"gpus": each.gpus, "limits": each.limits, "efficiency": each.efficiency} for each in predictions]
    return {"settings": settings, "link": vars(link), "predictions": rows}


if __name__ == "__main__":
    main()
