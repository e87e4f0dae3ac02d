"""Milliseconds of each convolution of VGG11 with its gradients: torch and Winograd.

    python -m benchmarks.speed.convolutions --batch-size 256 --image-size 32 --precision bf16

Both take turns on random feature maps, and medians are compared. The thresholds `MIN_CHANNELS` and `MIN_TILES` in
`ray_app/vgg_ddp/model/conv.py` come from this benchmark.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.record import write_json
from benchmarks.speed.throughput import convolutions
from vgg_ddp.machine.malloc import keep_freed_memory
from vgg_ddp.machine.precision import DTYPES
from vgg_ddp.model.winograd import WinogradConvolution, tiling_of

Convolution = Callable[[Tensor, Tensor], Tensor]


def torch_convolution(images: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(images, weight.to(images.dtype), padding=1)


def seconds_of_step(convolve: Convolution, images: Tensor, weight: Tensor, gradient: Tensor) -> float:
    started = time.perf_counter()
    torch.autograd.grad(convolve(images, weight), (images, weight), gradient)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--precision", choices=DTYPES, default="fp32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(options.threads)
    dtype, batch_size = DTYPES[options.precision], options.batch_size
    rows = []
    # The first layer has too few channels to matter.
    for ins, outs, size in dict.fromkeys(convolutions(options.image_size)[1:]):
        if not tiling_of(size):
            print(f"{ins:>3} to {outs} channels, {size:>2} x {size:<2}  no Winograd tiling")
            continue
        images, weight, gradient = (
            torch.randn(shape).to(memory_format=torch.channels_last)
            for shape in ((batch_size, ins, size, size), (outs, ins, 3, 3), (batch_size, outs, size, size))
        )
        images, gradient = images.to(dtype).requires_grad_(), gradient.to(dtype)
        weight.requires_grad_()
        implementations: dict[str, Convolution] = {"torch": torch_convolution, "winograd": WinogradConvolution.apply}
        seconds: dict[str, list[float]] = {name: [] for name in implementations}
        for _ in range(options.rounds):
            for name, convolve in implementations.items():
                seconds[name].append(seconds_of_step(convolve, images, weight, gradient))
        medians = {name: 1000 * statistics.median(values) for name, values in seconds.items()}
        rows.append({"channels": [ins, outs], "size": size} | medians)
        print(
            f"{ins:>3} to {outs} channels, {size:>2} x {size:<2}  "
            + "  ".join(f"{name} {value:7.1f} ms" for name, value in medians.items()),
            flush=True,
        )
    settings = {"batch_size": batch_size, "precision": options.precision, "threads": options.threads}
    write_json(options.json, {"settings": settings | {"n": options.rounds}, "milliseconds": rows})


if __name__ == "__main__":
    main()
