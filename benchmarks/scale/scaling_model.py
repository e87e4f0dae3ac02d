"""Predict the speed of training on many GPUs from measurements on two machines, and list the prediction's limits.

    python -m benchmarks.scale.scaling_model --network network.json --controller controller.json

network.json and controller.json are written by network.py and controller.py (--json). The model fits the fraction of a
link's speed that gradients reach, the fraction of the computation that can overlap with communication, and the
controller's load per worker. The fit is printed next to the measurements. All other values are flags; their help texts
state the assumptions.
"""

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from benchmarks.record import new_parser, write_json
from benchmarks.speed.throughput import flops_per_image

# VGG11 with ten classes, in fp32.
GRADIENT_BYTES = 4 * 9_231_114
GPUS = (1, 8, 16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class Link:
    """A model of the gradient all-reduce over a link.

    Attributes:
        efficiency: fraction of the link's speed that the gradients reach.
        hidden: fraction of a step's computation that can overlap with communication.
        exposed: fraction of the gradients that is sent after all computation has finished.
    """

    efficiency: float
    hidden: float
    exposed: float

    def seconds(self, machines: int, bytes_per_second: float, latency: float) -> float:
        """Duration of a ring all-reduce: each machine sends 2 (n - 1) / n of the gradients in 2 (n - 1) messages."""
        if machines == 1:
            return 0.0
        volume = 2 * (machines - 1) / machines * GRADIENT_BYTES
        return volume / (bytes_per_second * self.efficiency) + 2 * (machines - 1) * latency

    def exposed_seconds(self, all_reduce: float, compute: float) -> float:
        """Seconds by which an all-reduce lengthens a step, after overlapping with computation."""
        return max(self.exposed * all_reduce, all_reduce - self.hidden * compute)


@dataclass(frozen=True)
class Measured:
    """A link measured by network.py: its actual speed, and the seconds of a step with and without communication."""

    rate: str
    bytes_per_second: float
    step: float
    compute: float


def read_network(path: Path) -> list[Measured]:
    """The measurements in a file that network.py wrote."""
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
    """The link with the smallest squared relative error of predicted steps on two machines."""

    def error(link: Link) -> float:
        return sum((predict_pair(link, each) / each.step - 1) ** 2 for each in measured)

    grid = [number / 50 for number in range(51)]
    return min((Link(*values) for values in product(grid[10:], grid, grid)), key=error)


def predict_pair(link: Link, measured: Measured) -> float:
    """Predicted seconds of a step on the two machines of a measurement."""
    all_reduce = link.seconds(2, measured.bytes_per_second, 0.0)
    return measured.compute + link.exposed_seconds(all_reduce, measured.compute)


@dataclass(frozen=True)
class Prediction:
    """The predicted speed of a number of GPUs.

    Attributes:
        limits: images per second that each part of the system allows; the smallest one is the prediction.
        efficiency: fraction of linear scaling from one GPU.
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
    """Predict the speed of a number of GPUs."""
    nodes = math.ceil(gpus / options.gpus_of_node)
    of_gpu = options.global_batch / gpus if options.global_batch else float(options.batch_of_gpu)
    alone = options.gpu_tflops * 1e12 * options.utilization / flops_per_image()
    compute = of_gpu / alone + options.step_overhead
    # First within a node, then between nodes; one ring per link of that speed.
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


def read_controller(path: Path) -> tuple[float, float]:
    """The controller's load in cores, with the fewest workers measured and per additional worker."""
    results = json.loads(path.read_text())
    least = min(results["shares"], key=int)
    base = statistics.median(sample["controller"] for sample in results["shares"][least])
    return base, results["slopes"]["controller"]


def describe_limits(predictions: Sequence[Prediction], options: argparse.Namespace) -> list[str]:
    """The limits beyond which the predictions are not meaningful."""
    node = next(prediction for prediction in predictions if prediction.gpus > options.gpus_of_node)
    of_node = node.limits["training"] / math.ceil(node.gpus / options.gpus_of_node)
    lines = [
        f"With {node.gpus} GPUs, each node trains on {of_node:,.0f} images/s. Streaming them takes "
        f"{of_node / options.decoded_by_core:,.0f} cores to decode, and S3 is fast enough for images of up to "
        f"{options.storage_gbit_of_node * 1e9 / 8 / of_node:,.0f} bytes."
    ]
    large = [prediction for prediction in predictions if prediction.gpus * prediction.batch_of_gpu > 5000]
    if large:
        lines.append(
            f"With {large[0].gpus} or more GPUs, the global batch exceeds 5,000, a tenth of CIFAR-10, beyond which SGD "
            "gains little. Fix it with --global-batch, or train on more images."
        )
    tiny = [prediction for prediction in predictions if prediction.batch_of_gpu < 16]
    if tiny:
        lines.append(
            f"With {tiny[0].gpus} or more GPUs, each GPU gets fewer than 16 images per step and cannot reach its "
            "utilization."
        )
    return lines


def describe_controller(path: Path, workers: int) -> str:
    """The controller's load with this many workers, and the number of workers that keep it fully busy."""
    base, of_worker = read_controller(path)
    if of_worker <= 0:
        return "The controller's load does not grow with the number of workers."
    return (
        f"The controller needs {base + of_worker * workers:.1%} of a core on the head node with {workers} workers, "
        f"and a whole core with {(1 - base) / of_worker:,.0f}."
    )


def parse_options() -> argparse.Namespace:
    parser = new_parser(__doc__)
    add = parser.add_argument
    add("--network", type=Path, required=True, help="file written by network.py")
    add("--controller", type=Path, help="file written by controller.py")
    add("--batch-of-gpu", type=int, default=512, help="images per step and GPU (weak scaling); default: %(default)s")
    add("--global-batch", type=int, help="instead: images per step over all GPUs (strong scaling)")
    add("--gpu-tflops", type=float, default=70.0, help="peak in bf16; default: %(default)s (A10G)")
    add("--utilization", type=float, default=0.3, help="fraction of the peak in training; assumed: %(default)s")
    add("--step-overhead", type=float, default=0.002, help="seconds per step of any size; assumed: %(default)s")
    add("--gpus-of-node", type=int, default=4, help="default: %(default)s (g5.12xlarge)")
    add("--cores-of-node", type=int, default=24, help="default: %(default)s")
    add("--link-gbit", type=float, default=40.0, help="network of a node; default: %(default)s")
    add("--node-link-gbytes", type=float, default=10.0, help="GB/s between GPUs of a node; default: %(default)s (PCIe)")
    add("--latency", type=float, default=30e-6, help="seconds per message; assumed: %(default)s")
    add("--decoded-by-core", type=float, default=4100.0, help="images/s; default: as measured by ingest.py")
    add("--image-bytes", type=float, default=900.0, help="of an encoded image; default: %(default)s (32 x 32, JPEG)")
    add("--storage-gbit-of-node", type=float, default=20.0, help="a node's speed from S3; assumed: %(default)s")
    add("--from-memory", action="store_true", help="images are decoded before training")
    add("--checkpoint-seconds", type=float, default=0.05, help="default: as measured by checkpoints.py")
    add("--checkpoint-every-seconds", type=float, default=300.0)
    return parser.parse_args()


def print_fit(link: Link, measured: Sequence[Measured]) -> None:
    """Print the fitted link, and its predictions next to the measurements."""
    print(
        f"Two machines: gradients reach {link.efficiency:.0%} of a link's speed, up to {link.hidden:.0%} of the "
        f"computation can overlap with them, and {link.exposed:.0%} of them cannot overlap.\n"
    )
    for each in measured:
        predicted = predict_pair(link, each)
        print(
            f"  {each.rate:<8} {each.step:6.3f} s/step measured, {predicted:6.3f} s predicted "
            f"({predicted / each.step - 1:+.1%}); {each.compute:6.3f} s without communication"
        )


def print_predictions(predictions: Sequence[Prediction]) -> None:
    print(f"\n{'GPUs':>5}  {'batch':>7}  {'images/s':>12}  {'of linear':>9}  limited by")
    for prediction in predictions:
        print(
            f"{prediction.gpus:>5}  {prediction.gpus * prediction.batch_of_gpu:>7,.0f}  "
            f"{prediction.images_per_second:>12,.0f}  {prediction.efficiency:>9.0%}  {prediction.bottleneck}"
        )


def main() -> None:
    options = parse_options()
    measured = read_network(options.network)
    link = fit(measured)
    print_fit(link, measured)
    predictions = [predict(gpus, link, options) for gpus in GPUS]
    print_predictions(predictions)
    limits = describe_limits(predictions, options)
    if options.controller:
        limits.append(describe_controller(options.controller, GPUS[-1]))
    print("\nLimits of the prediction:", *limits, sep="\n- ")
    settings = {name: value for name, value in vars(options).items() if not isinstance(value, Path)}
    rows = [{"gpus": each.gpus, "limits": each.limits, "efficiency": each.efficiency} for each in predictions]
    write_json(options.json, {"settings": settings, "link": vars(link), "predictions": rows})


if __name__ == "__main__":
    main()
