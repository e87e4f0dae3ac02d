"""Images per second of processor time of decoding: what loading Parquet files does, and what prepare.py does.

    python -m benchmarks.speed.decode --data my-images --image-size 64 --against ../other-checkout

With `--against`, both checkouts decode the same images in turn, each in its own process but on the same core, and the
median of the ratios of their rates is printed.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks.program import ROOT
from benchmarks.record import new_parser, write_json
from vgg_ddp.data.decode import as_png_or_jpeg, decode_image

WAYS = ("decode_image", "as_png_or_jpeg")


def read_images(folder: Path, count: int) -> list[bytes]:
    """The first encoded training images of a folder of Parquet files."""
    table = pq.read_table(min(folder.glob("train*.parquet"))).slice(0, count)
    column = table.column("img" if "img" in table.column_names else "image").combine_chunks()
    images: list[bytes] = (column.field("bytes") if column.type.num_fields else column).to_pylist()
    return images


def measure(images: list[bytes], image_size: int, seconds: float) -> dict[str, float]:
    """Images per second of processor time of each way; other programs on the machine matter less than for real time."""
    rates = {}
    for way in WAYS:
        started, done = time.process_time(), 0
        while (elapsed := time.process_time() - started) < seconds:
            for encoded in images[done % len(images) :][:50]:
                if way == "decode_image":
                    decode_image(encoded, image_size)
                else:
                    as_png_or_jpeg(encoded, None)
                done += 1
        rates[way] = done / elapsed
    return rates


def serve(options: argparse.Namespace) -> None:
    """Measure once for each line of standard input."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    images = read_images(options.data, options.count)
    for _ in sys.stdin:
        rates = measure(images, options.image_size, options.seconds)
        print(*(rates[way] for way in WAYS), flush=True)


def start(checkout: Path) -> subprocess.Popen[str]:
    """Start this file with the program of a checkout."""
    program = (
        "import sys; from pathlib import Path; import benchmarks; "
        f"sys.path.insert(0, {str(checkout / 'ray_app')!r}); "
        "from benchmarks.speed import decode; decode.main()"
    )
    command = [sys.executable, "-c", program, *sys.argv[1:], "--serve"]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--data", type=Path, default=ROOT / "ray_app" / "sample", help="a folder of Parquet files")
    parser.add_argument("--image-size", type=int, default=32, help="default: %(default)s")
    parser.add_argument("--count", type=int, default=2000, help="number of images; default: %(default)s")
    parser.add_argument("--seconds", type=float, default=2, help="of each measurement; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=9, help="default: %(default)s")
    parser.add_argument("--against", type=Path, help="another checkout to compare with")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options)
        return
    programs = {"this": start(ROOT)} | ({"other": start(options.against.resolve())} if options.against else {})
    rates: dict[str, list[list[float]]] = {name: [] for name in programs}
    for number in range(options.rounds):
        # The order alternates, because whoever comes second may find a warmer or a more throttled machine.
        for name in list(programs)[:: 1 if number % 2 else -1]:
            requests, answers = programs[name].stdin, programs[name].stdout
            assert requests and answers
            print(file=requests, flush=True)
            rates[name].append([float(rate) for rate in answers.readline().split()])
    for program in programs.values():
        program.communicate()
    for index, way in enumerate(WAYS):
        text = f"{way:<16}" + "".join(
            f" {name} {statistics.median(row[index] for row in rows):9,.0f} images/s" for name, rows in rates.items()
        )
        if options.against:
            ratios = [mine[index] / other[index] for mine, other in zip(rates["this"], rates["other"], strict=True)]
            text += f"  ratio {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
        print(text)
    write_json(options.json, {"data": str(options.data), "image_size": options.image_size, "images_per_second": rates})


if __name__ == "__main__":
    main()
