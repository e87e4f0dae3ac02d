"""What gradients cost on the network between two machines, and what DDP's options buy, at several speeds of the link.

    sudo "$(which python)" benchmarks/network.py --rates 10gbit 1gbit 100mbit --steps 3

The two machines are network namespaces of this one, each kept to one core, with a link between them that `tc` shapes.
Needs root and iproute2. The share of communication is the part of a step that is gone when gradients stay where they
are (DDP's no_sync).
"""

import argparse
import json
import os
import secrets
import shutil
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from record import write_json

WORKER = Path(__file__).with_name("network_worker.py")
PACKAGE_FOLDER = Path(__file__).resolve().parent.parent / "ray_app"
MACHINES = 2
BITS = {"mbit": 1e6, "gbit": 1e9}
# The kernel refills a shaped link's tokens at every tick: this many a second, and what passes between two at once.
TICKS, HEADROOM = 250, 1.25
QUEUE = "50ms"
LIMIT_SECONDS = 900
# Name, bucket size in MB (DDP's default is 25), gradients sent as bf16.
OPTIONS: list[tuple[str, float, bool]] = [
    ("25 MB buckets", 25, False),
    ("1 MB buckets", 1, False),
    ("10 MB buckets", 10, False),
    ("100 MB buckets", 100, False),
    ("25 MB, bf16", 25, True),
]


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


def bits_per_second(rate: str) -> float:
    """A rate as tc writes it, such as 100mbit.

    Raises:
        ValueError: if it is not one.
    """
    number, unit = rate[:-4], rate[-4:]
    if unit not in BITS or not number.isdigit() or int(number) == 0:
        raise ValueError(f"--rates {rate}: expected a number with mbit or gbit, such as 100mbit.")
    return int(number) * BITS[unit]


@contextmanager
def linked_machines(rate: str) -> Iterator[list[str]]:
    """Names of two network namespaces with a link of this rate, at 10.10.0.1 and 10.10.0.2."""
    mark = secrets.token_hex(3)
    names = [f"link-{mark}-{number}" for number in range(MACHINES)]
    try:
        for name in names:
            run("ip", "netns", "add", name)
        run("ip", "link", "add", "link0", "netns", names[0], "type", "veth", "peer", "name", "link0", "netns", names[1])
        for number, name in enumerate(names):
            run("ip", "-n", name, "address", "add", f"10.10.0.{number + 1}/24", "dev", "link0")
            for device in ("lo", "link0"):
                run("ip", "-n", name, "link", "set", device, "up")
            burst = bits_per_second(rate) / 8 / TICKS * HEADROOM
            shape = ["rate", rate, "burst", str(round(burst)), "latency", QUEUE]
            run("tc", "-n", name, "qdisc", "add", "dev", "link0", "root", "tbf", *shape)
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def measure(rate: str, batch_size: int, steps: int) -> dict[str, Any]:
    """Seconds of each step, by options, on a link of this rate, and what a plain transfer gets."""
    with linked_machines(rate) as names:
        processes = []
        for rank, name in enumerate(names):
            core = str(sorted(os.sched_getaffinity(0))[rank % len(os.sched_getaffinity(0))])
            command = ["ip", "netns", "exec", name, "taskset", "-c", core, sys.executable, str(WORKER)]
            command += [str(rank), str(MACHINES), str(batch_size // MACHINES), str(steps), json.dumps(OPTIONS)]
            environment = os.environ | {"PYTHONPATH": str(PACKAGE_FOLDER)}
            processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment))
        try:
            outputs = [process.communicate(timeout=LIMIT_SECONDS)[0] for process in processes]
        finally:
            for process in processes:
                process.kill()
        if any(process.returncode for process in processes):
            raise SystemExit(f"a worker failed at {rate}; its error is shown above")
    results: dict[str, Any] = json.loads(outputs[0])
    return results


def print_row(row: dict[str, Any], batch_size: int) -> None:
    step = statistics.median(row["seconds"])
    spread = max(row["seconds"]) - min(row["seconds"])
    # Of pairs of steps next to each other: the machine's speed changes.
    pairs = zip(row["seconds"], row["seconds_without_communication"], strict=True)
    share = max(0.0, 1 - statistics.median(alone / together for together, alone in pairs))
    print(
        f"  {row['name']:<15} {batch_size / step:7.1f} images/s  {step:7.3f} s/step (spread {spread:.3f})  "
        f"communication {share:4.0%}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", nargs="+", default=["10gbit", "1gbit", "100mbit"], help="as tc writes them")
    parser.add_argument("--batch-size", type=int, default=128, help="global; default: %(default)s")
    parser.add_argument("--steps", type=int, default=3, help="measured for each option; default: %(default)s")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if os.geteuid() != 0 or not shutil.which("tc"):
        parser.error("network namespaces need root and iproute2.")
    try:
        for rate in options.rates:
            bits_per_second(rate)
    except ValueError as error:
        parser.error(str(error))
    # A terminated run is to clean up like an interrupted one.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    results = {}
    for rate in options.rates:
        results[rate] = measure(rate, options.batch_size, options.steps)
        print(f"{rate}: a plain transfer gets {results[rate]['bits_per_second'] / 1e6:,.0f} Mbit/s")
        for row in results[rate]["rows"]:
            print_row(row, options.batch_size)
    settings = {"machines": MACHINES, "batch_size": options.batch_size, "steps": options.steps}
    write_json(options.json, {"settings": settings, "rates": results})


if __name__ == "__main__":
    main()
