"""Time from the command to the first training step, by phase, compared with the smallest TorchTrainer script.

    python -m benchmarks.speed.startup --num-workers 4 --rounds 3

Both programs take turns, so that changes in the machine's speed affect both, and medians are compared.
"""

import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.program import MAIN
from benchmarks.record import new_parser, write_json

SMALLEST = Path(__file__).with_name("smallest_trainer.py")
LIMIT_SECONDS = 600


def run_project(num_workers: int, data: str, folder: Path) -> dict[str, float]:
    """Seconds from the command to the end of each start-up phase; the run is stopped after its first step."""
    command = [sys.executable, str(MAIN), "--num-workers", str(num_workers), "--data", data]
    command += ["--storage-path", str(folder), "--run-name", "startup", "--epochs", "1"]
    startup_file = folder / "startup" / "startup.json"
    started = time.time()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while not startup_file.exists() and process.poll() is None and time.time() - started < LIMIT_SECONDS:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=LIMIT_SECONDS)
    if not startup_file.exists():
        raise SystemExit(f"main.py did not reach its first step: {errors[-2000:]}")
    phases = json.loads(startup_file.read_text())
    return {name: moment - started for name, moment in phases.items()}


def run_smallest(num_workers: int, folder: Path) -> float:
    """Seconds from the command to the first step of the smallest script's slowest worker."""
    started = time.time()
    command = [sys.executable, str(SMALLEST), str(num_workers), str(folder)]
    environment = os.environ | {"RAY_DEDUP_LOGS": "0"}
    result = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_SECONDS, env=environment)
    moments = [float(value) for value in re.findall(r"FIRST_STEP (\d+\.\d+)", result.stdout)]
    if len(moments) < num_workers:
        raise SystemExit(f"the smallest script failed: {result.stderr[-2000:]}")
    return max(moments) - started


def print_phases(ours: list[dict[str, float]]) -> None:
    """Print the end and duration of each phase: medians over the rounds."""
    previous = 0.0
    for phase in ours[0]:
        moment = statistics.median(phases[phase] for phases in ours)
        print(f"  {phase:<16} {moment:6.1f} s  (+{moment - previous:.1f})")
        previous = moment


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--num-workers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", default="sample")
    options = parser.parse_args()
    ours: list[dict[str, float]] = []
    smallest: list[float] = []
    for number in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            ours.append(run_project(options.num_workers, options.data, Path(folder)))
            smallest.append(run_smallest(options.num_workers, Path(folder)))
        print(f"round {number + 1}: ours {ours[-1]['first step']:.1f} s, smallest {smallest[-1]:.1f} s", flush=True)
    print(f"\n{options.num_workers} workers, data {options.data}, median of {options.rounds}\n")
    print_phases(ours)
    ratio = statistics.median(phases["first step"] / other for phases, other in zip(ours, smallest, strict=True))
    print(f"  {'smallest script':<16} {statistics.median(smallest):6.1f} s")
    print(f"  {'ratio':<16} {ratio:6.2f}")
    settings = {"num_workers": options.num_workers, "data": options.data, "n": options.rounds}
    write_json(options.json, {"settings": settings, "ours": ours, "smallest": smallest, "ratio": ratio})


if __name__ == "__main__":
    main()
