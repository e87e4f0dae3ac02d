"""Requests per second and their latency at serve.py, with and without batching.

    python -m benchmarks.speed.serving --clients 16 --seconds 10

Each client sends one PNG image of 32 x 32 pixels at a time, over a connection that it keeps, and waits for the answer.
The clients share the cores of this machine with the server. The model has random weights: they do not change the speed.
"""

import contextlib
import http.client
import io
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.random_model import write_random_model
from benchmarks.record import new_parser, write_json

SERVE = Path(__file__).resolve().parents[2] / "ray_app" / "serve.py"
START_SECONDS, STOP_SECONDS = 120, 60
WARM_UP_SECONDS = 2.0
HEADERS = {"Content-Type": "image/png"}


def random_image() -> bytes:
    """A PNG file of 32 x 32 pixels."""
    stream = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@contextlib.contextmanager
def served(model: Path, *flags: object) -> Iterator[int]:
    """Run serve.py; yield its port.

    Raises:
        SystemExit: if it does not start.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    command = [sys.executable, SERVE, model, "--port", port, *flags]
    log = model / "log"
    with log.open("w") as output, subprocess.Popen(list(map(str, command)), stdout=output, stderr=output) as server:
        try:
            deadline = time.monotonic() + START_SECONDS
            while "Listening" not in log.read_text():
                if server.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"serve.py did not start: {log.read_text()[-2000:]}")
                time.sleep(0.1)
            yield port
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(STOP_SECONDS)


def load(port: int, clients: int, seconds: float) -> list[float]:
    """Seconds that each request takes when this many clients send requests for this long.

    Raises:
        SystemExit: if a response is not OK.
    """
    image, times, statuses = random_image(), list[float](), set[int]()

    def send_requests() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        while time.monotonic() < end:
            started = time.perf_counter()
            connection.request("POST", "/invocations", image, HEADERS)
            response = connection.getresponse()
            response.read()
            times.append(time.perf_counter() - started)
            statuses.add(response.status)
        connection.close()

    end = time.monotonic() + seconds
    with ThreadPoolExecutor(clients) as pool:
        for client in [pool.submit(send_requests) for _ in range(clients)]:
            client.result()
    if statuses != {200}:
        raise SystemExit(f"responses with status {statuses}")
    return times


def measure(model: Path, batch: int, clients: int, seconds: float, replicas: int) -> dict[str, float]:
    """Requests per second, and the median and 99th percentile of their latency in milliseconds."""
    with served(model, "--max-batch", batch, "--replicas", replicas) as port:
        load(port, clients, WARM_UP_SECONDS)
        times = load(port, clients, seconds)
    percentiles = statistics.quantiles(times, n=100)
    return {
        "requests_per_second": len(times) / seconds,
        "p50_ms": percentiles[49] * 1000,
        "p99_ms": percentiles[98] * 1000,
    }


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32], help="values of --max-batch")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    results: dict[int, list[dict[str, float]]] = {batch: [] for batch in options.batches}
    with tempfile.TemporaryDirectory() as folder:
        write_random_model(Path(folder), "classic")
        for number in range(options.rounds):
            for batch, rounds in results.items():
                rounds.append(measure(Path(folder), batch, options.clients, options.seconds, options.replicas))
                print(f"round {number + 1}: batches of up to {batch}: {describe(rounds[-1])}", flush=True)
    print(f"\nmedian of {options.rounds}, {options.clients} clients, {options.replicas} replica(s)\n")
    for batch, rounds in results.items():
        medians = {name: statistics.median(values[name] for values in rounds) for name in rounds[0]}
        print(f"  --max-batch {batch:<3} {describe(medians)}")
    settings: dict[str, Any] = vars(options) | {"json": None}
    write_json(options.json, {"settings": settings, "results": results})


def describe(result: dict[str, float]) -> str:
    """The measurements of a run as text."""
    speed, median, tail = result["requests_per_second"], result["p50_ms"], result["p99_ms"]
    return f"{speed:7.1f} requests/s, latency {median:6.1f} ms (median), {tail:6.1f} ms (99%)"


if __name__ == "__main__":
    main()
