"""One of the two machines of network.py.

python -m benchmarks.scale.network_worker RANK WORLD_SIZE BATCH_SIZE STEPS OPTIONS

Trains VGG11 on noise with each of the options (JSON). Rank 0 prints the seconds of each step as JSON.
"""

import contextlib
import json
import os
import sys
import time
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from vgg_ddp.model.build import build_model
from vgg_ddp.recipes import CLASSIC
from vgg_ddp.worker.ddp import SYNC_BUFFERS
from vgg_ddp.worker.optimizers import build_optimizers

ADDRESS = "10.10.0.1"
WARM_UP_STEPS = 1
PORT = 29500
# About the size of VGG11's gradients in fp32.
TRANSFER_BYTES = 37_000_000


class Training:
    """VGG11 under DDP with one set of options, trained on noise."""

    def __init__(self, name: str, bucket_mb: float, compress: bool, batch_size: int) -> None:
        self.name = name
        self.seconds: list[float] = []
        self.seconds_without_communication: list[float] = []
        model = build_model("classic", 10, seed=0)
        settings: dict[str, Any] = {SYNC_BUFFERS: False, "gradient_as_bucket_view": True}
        self.ddp = DistributedDataParallel(model, bucket_cap_mb=bucket_mb, **settings)
        if compress:
            self.ddp.register_comm_hook(None, bf16_compress_hook)
        self.optimizers = build_optimizers(model, CLASSIC, batch_size)
        self.images = torch.randn(batch_size, 3, 32, 32).to(memory_format=torch.channels_last)
        self.labels = torch.randint(10, (batch_size,))

    def step(self, alone: bool) -> float:
        """Seconds of one step, with gradients averaged over the machines, or (alone) without."""
        dist.barrier()
        started = time.perf_counter()
        with self.ddp.no_sync() if alone else contextlib.nullcontext():
            F.cross_entropy(self.ddp(self.images), self.labels).backward()
        self.optimizers.step(part_of_peak=0.1)
        return time.perf_counter() - started

    def measure(self) -> None:
        """Take a step of each kind, so that changes in the machine's speed affect both."""
        self.seconds.append(self.step(alone=False))
        self.seconds_without_communication.append(self.step(alone=True))

    def results(self) -> dict[str, Any]:
        """Seconds of the steps after the warm-up."""
        return {
            "name": self.name,
            "seconds": self.seconds[WARM_UP_STEPS:],
            "seconds_without_communication": self.seconds_without_communication[WARM_UP_STEPS:],
        }


def time_transfer(rank: int) -> float:
    """Bits per second of one large message from rank 0 to rank 1, with a small one back."""
    message, answer = torch.zeros(TRANSFER_BYTES, dtype=torch.uint8), torch.zeros(1)
    dist.barrier()
    started = time.perf_counter()
    if rank == 0:
        dist.send(message, 1)
        dist.recv(answer, 1)
    else:
        dist.recv(message, 0)
        dist.send(answer, 0)
    return TRANSFER_BYTES * 8 / (time.perf_counter() - started)


def main() -> None:
    rank, world_size, batch_size, steps = (int(argument) for argument in sys.argv[1:5])
    os.environ["GLOO_SOCKET_IFNAME"] = "link0"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://{ADDRESS}:{PORT}", rank=rank, world_size=world_size)
    bits_per_second = time_transfer(rank)
    trainings = [
        Training(name, bucket_mb, compress, batch_size) for name, bucket_mb, compress in json.loads(sys.argv[5])
    ]
    for _ in range(WARM_UP_STEPS + steps):
        for training in trainings:
            training.measure()
    rows = [training.results() for training in trainings]
    dist.destroy_process_group()
    if rank == 0:
        print(json.dumps({"bits_per_second": bits_per_second, "rows": rows}))


if __name__ == "__main__":
    main()
