"""Time to classify many images: predict.py --images, and torch's DataLoader in a loop as tutorials write it.

    python -m benchmarks.speed.inference --data my-images --count 10000 --rounds 3

Each program is a command of its own that reads the same images and writes a Parquet file. Times are those of the whole
commands; images per second are without start-up. The weights are random: they do not change the speed.
"""

import argparse
import itertools
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.program import ROOT
from benchmarks.random_model import write_random_model
from benchmarks.record import new_parser, write_json

PREDICT = ROOT / "ray_app" / "predict.py"
IMAGES_PER_FOLDER = 1000


@dataclass(frozen=True)
class Inputs:
    """A model, and the same images as files and as rows."""

    model: Path
    folder: Path
    parquet: Path


@dataclass(frozen=True)
class Measured:
    """Seconds of the whole command, and images per second without start-up."""

    seconds: float
    images_per_second: float


def make_inputs(root: Path, data: Path, count: int, image_size: int) -> Inputs:
    """Write the first training images of a folder of Parquet files in both forms, repeated if there are too few."""
    inputs = Inputs(root / "run", root / "images", root / "images.parquet")
    tables = [pq.read_table(file) for file in sorted(data.glob("train*.parquet"))]
    column = "img" if "img" in tables[0].column_names else "image"
    cells = itertools.islice(itertools.cycle(cell for table in tables for cell in table[column].to_pylist()), count)
    encoded = [cell["bytes"] if isinstance(cell, dict) else cell for cell in cells]
    for index, content in enumerate(encoded):
        suffix = "png" if content.startswith(b"\x89PNG") else "jpg"
        file = inputs.folder / f"{index // IMAGES_PER_FOLDER:03}" / f"{index:07}.{suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    pq.write_table(pa.table({"image": encoded}), inputs.parquet)
    write_random_model(inputs.model, "fast", image_size)
    return inputs


def commands(inputs: Inputs) -> dict[str, list[object]]:
    """The programs to compare, without their outputs."""
    predict = [sys.executable, PREDICT, inputs.model, "--device", "cpu", "--images"]
    loop = [sys.executable, "-m", "benchmarks.speed.dataloader_loop", inputs.model, inputs.folder]
    return {
        "predict.py, files": [*predict, inputs.folder, "--output"],
        "predict.py, Parquet": [*predict, inputs.parquet, "--output"],
        "DataLoader": loop,
        "DataLoader, this program's convolutions": [*loop, "--fast-convolutions"],
    }


def measure(command: list[object], output: Path, count: int) -> Measured:
    """Run a command that must classify all images.

    Raises:
        SystemExit: if it does not.
    """
    started = time.perf_counter()
    result = subprocess.run([*map(str, command), str(output)], cwd=ROOT, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    rate = re.search(r"([\d,]+) images/s", result.stdout)
    if result.returncode or rate is None or pq.read_metadata(output).num_rows != count:
        raise SystemExit(f"{command} failed: {result.stdout[-1000:]}{result.stderr[-2000:]}")
    output.unlink()
    return Measured(seconds, float(rate[1].replace(",", "")))


def parse_options() -> argparse.Namespace:
    parser = new_parser(__doc__)
    parser.add_argument("--data", type=Path, default=ROOT / "ray_app" / "sample", help="a folder of Parquet files")
    parser.add_argument("--count", type=int, default=10_000, help="number of images; default: %(default)s")
    parser.add_argument("--image-size", type=int, default=32, help="of the model; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    measured: dict[str, list[Measured]] = {}
    # A private home directory, so that other Ray clusters on this machine and their tokens do not interfere.
    with tempfile.TemporaryDirectory(prefix="infer-") as home:
        os.environ |= {"HOME": home, "RAY_TMPDIR": home, "RAY_USAGE_STATS_ENABLED": "0"}
        inputs = make_inputs(Path(home), options.data, options.count, options.image_size)
        programs = commands(inputs)
        for number in range(options.rounds):
            # The order alternates, because the machine's speed may drift.
            for name in list(programs)[:: 1 if number % 2 == 0 else -1]:
                result = measure(programs[name], Path(home, "predictions.parquet"), options.count)
                measured.setdefault(name, []).append(result)
                speed = f"{result.seconds:6.1f} s  {result.images_per_second:8,.0f} images/s"
                print(f"round {number + 1}: {name:<40} {speed}", flush=True)
    print(f"\n{options.count:,} images, medians of {options.rounds}\n")
    medians = {name: statistics.median(result.seconds for result in measured[name]) for name in programs}
    for name, seconds in medians.items():
        rate = statistics.median(result.images_per_second for result in measured[name])
        ratio = medians["DataLoader"] / seconds
        print(f"  {name:<40} {seconds:6.1f} s  {ratio:5.2f} x  {rate:8,.0f} images/s without start-up")
    settings = {name: str(getattr(options, name)) for name in ("data", "count", "image_size", "rounds")}
    results = {name: [vars(result) for result in of_name] for name, of_name in measured.items()}
    write_json(options.json, {"settings": settings, "measured": results})


if __name__ == "__main__":
    main()
