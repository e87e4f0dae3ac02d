"""Cost of averaging gradients over a network between two machines, by link speed, and the effect of DDP's options.

    sudo "$(which python)" -m benchmarks.scale.network --rates 10gbit 1gbit 100mbit --steps 3

The two machines are network namespaces of this one, each limited to one core, with a link between them that `tc`
shapes. Needs root and iproute2. The share of communication is the fraction of a step that disappears when gradients are
not averaged (DDP's no_sync).
"""

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
from typing import Any

from benchmarks.record import new_parser, write_json

MACHINES = 2
BITS = {"mbit": 1e6, "gbit": 1e9}
# The kernel refills the tokens of a shaped link TICKS times per second; a burst must cover the time in between.
TICKS, HEADROOM = 250, 1.25
QUEUE = "50ms"
LIMIT_SECONDS = 900
# Name, bucket size in MB (DDP's default is 25), whether gradients are sent as bf16.
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
    """Parse a rate in tc's notation, such as 100mbit.

    Raises:
        ValueError: if it is not a rate.
    """
    number, unit = rate[:-4], rate[-4:]
    if unit not in BITS or not number.isdigit() or int(number) == 0:
        raise ValueError(f"--rates {rate}: expected a number with mbit or gbit, such as 100mbit.")
    return int(number) * BITS[unit]


@contextmanager
def linked_machines(rate: str) -> Iterator[list[str]]:
    """Names of two network namespaces, 10.10.0.1 and 10.10.0.2, with a link of this rate between them."""
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
    """Seconds of each step with each of OPTIONS on a link of this rate, and the speed of a plain transfer."""
    with linked_machines(rate) as names:
        processes = []
        for rank, name in enumerate(names):
            core = str(sorted(os.sched_getaffinity(0))[rank % len(os.sched_getaffinity(0))])
            command = ["ip", "netns", "exec", name, "taskset", "-c", core]
            command += [sys.executable, "-m", "benchmarks.scale.network_worker"]
            command += [str(rank), str(MACHINES), str(batch_size // MACHINES), str(steps), json.dumps(OPTIONS)]
            processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
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
    # In pairs of consecutive steps, because the machine's speed changes.
    pairs = zip(row["seconds"], row["seconds_without_communication"], strict=True)
    share = max(0.0, 1 - statistics.median(alone / together for together, alone in pairs))
    print(
        f"  {row['name']:<15} {batch_size / step:7.1f} images/s  {step:7.3f} s/step (spread {spread:.3f})  "
        f"communication {share:4.0%}",
        flush=True,
    )


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--rates", nargs="+", default=["10gbit", "1gbit", "100mbit"], help="in tc's notation")
    parser.add_argument("--batch-size", type=int, default=128, help="global; default: %(default)s")
    parser.add_argument("--steps", type=int, default=3, help="measured with each option; default: %(default)s")
    options = parser.parse_args()
    if os.geteuid() != 0 or not shutil.which("tc"):
        parser.error("network namespaces need root and iproute2.")
    try:
        for rate in options.rates:
            bits_per_second(rate)
    except ValueError as error:
        parser.error(str(error))
    # Terminating the benchmark must clean up, as interrupting it does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    results = {}
    for rate in options.rates:
        results[rate] = measure(rate, options.batch_size, options.steps)
        print(f"{rate}: a plain transfer reaches {results[rate]['bits_per_second'] / 1e6:,.0f} Mbit/s")
        for row in results[rate]["rows"]:
            print_row(row, options.batch_size)
    settings = {"machines": MACHINES, "batch_size": options.batch_size, "steps": options.steps}
    write_json(options.json, {"settings": settings, "rates": results})


if __name__ == "__main__":
    main()
