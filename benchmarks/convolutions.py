"""Milliseconds of each convolution of VGG11 with its gradients: torch's own, and Winograd's.

    python benchmarks/convolutions.py --batch-size 256 --image-size 32 --precision bf16

Both take turns on random maps, and medians are compared. `LEAST_CHANNELS` and `LEAST_TILES` in
`ray_app/vgg_ddp/convolution.py` say from where on the program takes Winograd's.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from program import ROOT
from record import write_json
from throughput import convolutions
from torch import Tensor

sys.path.insert(0, str(ROOT / "ray_app"))
from vgg_ddp.allocation import keep_freed_memory
from vgg_ddp.replica import DTYPES
from vgg_ddp.winograd import WinogradConvolution, tiling_of

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
    # The first layer has too few channels for either to matter.
    for ins, outs, size in dict.fromkeys(convolutions(options.image_size)[1:]):
        if not tiling_of(size):
            print(f"{ins:>3} to {outs} channels, {size:>2} x {size:<2}  Winograd's has no tiles for it")
            continue
        images, weight, gradient = (
            torch.randn(shape).to(memory_format=torch.channels_last)
            for shape in ((batch_size, ins, size, size), (outs, ins, 3, 3), (batch_size, outs, size, size))
        )
        images, gradient = images.to(dtype).requires_grad_(), gradient.to(dtype)
        weight.requires_grad_()
        ways: dict[str, Convolution] = {"torch": torch_convolution, "winograd": WinogradConvolution.apply}
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(options.rounds):
            for name, convolve in ways.items():
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
