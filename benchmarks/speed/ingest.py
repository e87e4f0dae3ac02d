"""Images decoded during training, compared with images decoded beforehand and with torch's DataLoader.

    python -m benchmarks.speed.ingest --data ../cifar10 --rounds 3 --seeds 0 1 2

First measures the images per second of each way of reading, without training: all read the same Parquet files in turn,
with all cores. Then trains with two workers: from memory, and streamed on a cluster whose object store is smaller than
the decoded images. Prints speed, accuracy, and a worker's peak memory in each epoch.
"""

import argparse
import io
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import ray
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.program import Trained, mean_and_spread, train
from benchmarks.record import new_parser, write_json
from vgg_ddp.config import TrainConfig
from vgg_ddp.data.dataset import load_dataset
from vgg_ddp.data.layout import find_layout
from vgg_ddp.data.source import find_source
from vgg_ddp.data.streamed_dataset import open_stream
from vgg_ddp.driver import ray_environment
from vgg_ddp.feeds.feed import Feed
from vgg_ddp.feeds.memory_feed import MemoryFeed
from vgg_ddp.feeds.stream_feed import StreamFeed
from vgg_ddp.machine.limits import usable_cores

CPU = torch.device("cpu")
# Ray's minimum.
SMALL_STORE_BYTES = 80 * 10**6


class EncodedImages(Dataset[tuple[torch.Tensor, int]]):
    """Encoded images of Parquet files, decoded and augmented one by one, as in most tutorials."""

    def __init__(self, location: str) -> None:
        layout = find_layout(location)
        tables = [pq.read_table((layout.folder / file).path) for file in layout.train.files]
        self.images = [cell["bytes"] for table in tables for cell in table.column(0).to_pylist()]
        self.labels = [label for table in tables for label in table.column("label").to_pylist()]
        augment = [transforms.Resize((32, 32)), transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
        self.transform = transforms.Compose([*augment, transforms.PILToTensor()])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.open(io.BytesIO(self.images[index])).convert("RGB")), self.labels[index]


def rate_of_loader(location: str, batch_size: int) -> float:
    """Images per second of torch's DataLoader, with one process per core."""
    images = EncodedImages(location)
    loader = DataLoader(images, batch_size, shuffle=True, num_workers=usable_cores(), drop_last=True)
    started = time.perf_counter()
    count = sum(len(labels) for _, labels in loader)
    return count / (time.perf_counter() - started)


def rate_of_feed(feed: Feed) -> float:
    """Images per second of a feed's first epoch."""
    started = time.perf_counter()
    count = sum(len(labels) for _, labels in feed.train_batches(0, 0))
    return count / (time.perf_counter() - started)


def measure_reading(data: str, batch_size: int, rounds: int) -> dict[str, list[float]]:
    """Images per second of one epoch, for each way of reading and each round."""
    source = find_source(data, "")
    config = TrainConfig(num_workers=1, batch_size=batch_size)
    whole, streamed = load_dataset(source, 32), open_stream(source, 32)
    ray.init(include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    ways: dict[str, Callable[[], float]] = {
        "from memory": lambda: rate_of_feed(MemoryFeed(whole, config, 0, 1, CPU)),
        "streamed": lambda: rate_of_feed(StreamFeed(streamed, config, 0, 1, CPU)),
        "torch's DataLoader": lambda: rate_of_loader(source.location, batch_size),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name, way in ways.items():
            rates[name].append(way())
            print(f"round {number + 1}: {name:<20} {rates[name][-1]:10,.0f} images/s", flush=True)
    ray.shutdown()
    return rates


@contextmanager
def cluster_with_small_store() -> Iterator[str]:
    """Start a Ray cluster on this machine with an object store of `SMALL_STORE_BYTES`; yield its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ray_command = Path(sys.executable).with_name("ray")
    command = [ray_command, "start", "--head", "--block", f"--port={port}", "--node-ip-address=127.0.0.1"]
    command += [f"--object-store-memory={SMALL_STORE_BYTES}", "--include-dashboard=false", "--disable-usage-stats"]
    with subprocess.Popen(
        list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        try:
            _wait_for(port)
            yield f"127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, signal.SIGTERM)


def _wait_for(port: int) -> None:
    """Wait up to a minute until a port of this machine accepts connections."""
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 5).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def measure_training(data: str, batch_size: int, epochs: int, seeds: list[int]) -> dict[str, list[Trained]]:
    """Runs from memory and streamed, one per seed."""
    flags = ["--data", data, "--recipe", "classic", "--num-workers", 2, "--batch-size", batch_size, "--epochs", epochs]
    runs: dict[str, list[Trained]] = {"from memory": [], "streamed, small store": []}
    for seed in seeds:
        of_seed = [*flags, "--seed", seed]
        runs["from memory"].append(train(*of_seed, "--ingest", "memory", watch_memory=True))
        with cluster_with_small_store() as address:
            small = train(*of_seed, "--ingest", "stream", "--address", address, watch_memory=True)
        runs["streamed, small store"].append(small)
        for kind, trained in runs.items():
            print(f"seed {seed}: {kind:<22} test {trained[-1].rows[-1]['test_accuracy']:.2%}", flush=True)
    return runs


def print_reading(rates: dict[str, list[float]]) -> None:
    for name, values in rates.items():
        print(f"  {name:<22} {statistics.median(values):10,.0f} images/s  ({min(values):,.0f} to {max(values):,.0f})")


def print_training(runs: dict[str, list[Trained]]) -> None:
    """Print the median speed, the mean accuracy, and each epoch's largest peak of memory over the seeds."""
    for name, of_seeds in runs.items():
        speed = statistics.median(row["images_per_second"] for run in of_seeds for row in run.rows)
        of_epochs = zip(*(run.peaks_by_epoch() for run in of_seeds), strict=True)
        peaks = ", ".join(f"{max(of_epoch) / 1e6:,.0f}" for of_epoch in of_epochs)
        finals = [run.rows[-1]["test_accuracy"] for run in of_seeds]
        print(f"  {name:<22} {speed:7.1f} images/s  test {mean_and_spread(finals)}  peak memory by epoch {peaks} MB")


def parse_options() -> argparse.Namespace:
    parser = new_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="of reading; default: %(default)s")
    parser.add_argument("--epochs", type=int, default=3, help="of training; default: %(default)s")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of training; default: 0")
    parser.add_argument("--data", default="sample", help="sample, or a folder of Parquet files")
    parser.add_argument("--batch-size", type=int, default=128, help="global; default: %(default)s")
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    # A private home directory, so that other Ray clusters on this machine and their tokens do not interfere.
    with tempfile.TemporaryDirectory(prefix="ingest-") as home:
        os.environ |= {"HOME": home, "RAY_TMPDIR": home, "RAY_USAGE_STATS_ENABLED": "0"}
        # The same setting as in main.py, here and on the cluster with the small store.
        ray_environment.prepare(ray_environment.LOCAL, streamed=True)
        rates = measure_reading(options.data, options.batch_size, options.rounds)
        runs = measure_training(options.data, options.batch_size, options.epochs, options.seeds)
    print(f"\nreading {options.data}, median of {options.rounds}\n")
    print_reading(rates)
    print(f"\ntraining, 2 workers, global batch {options.batch_size}, {options.epochs} epochs\n")
    print_training(runs)
    settings = {name: getattr(options, name) for name in ("data", "batch_size", "rounds", "epochs", "seeds")}
    training = {
        name: [{"rows": run.rows, "peaks_by_epoch": run.peaks_by_epoch()} for run in of_seeds]
        for name, of_seeds in runs.items()
    }
    write_json(options.json, {"settings": settings, "images_per_second": rates, "training": training})


if __name__ == "__main__":
    main()
