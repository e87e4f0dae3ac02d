"""Time from the command to the first step, by phase, next to the smallest possible Ray TorchTrainer script.

    python benchmarks/startup.py --num-workers 4 --rounds 3

Both start in turn, so that a change of the machine's speed hits both alike; medians are compared.
"""

import argparse
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

from record import write_json

ROOT = Path(__file__).resolve().parent.parent
LIMIT_SECONDS = 600


def run_project(num_workers: int, data: str, folder: Path) -> dict[str, float]:
    """Seconds from the command to the end of each phase of ours; the run is stopped after its first epoch."""
    main = [sys.executable, str(ROOT / "ray_app" / "main.py"), "--num-workers", str(num_workers), "--data", data]
    started = time.time()
    command = [*main, "--storage-path", str(folder), "--run-name", "startup", "--epochs", "1"]
    startup_file = folder / "startup" / "startup.json"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while not startup_file.exists() and process.poll() is None and time.time() - started < LIMIT_SECONDS:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=LIMIT_SECONDS)
    if not startup_file.exists():
        raise SystemExit(f"no first step: {errors[-2000:]}")
    phases = json.loads(startup_file.read_text())
    return {name: moment - started for name, moment in phases.items()}


def run_smallest(num_workers: int, folder: Path) -> float:
    """Seconds from the command to the first step of the smallest script's slowest worker."""
    script = Path(__file__).with_name("smallest_trainer.py")
    started = time.time()
    command = [sys.executable, str(script), str(num_workers), str(folder)]
    environment = os.environ | {"RAY_DEDUP_LOGS": "0"}
    result = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_SECONDS, env=environment)
    moments = [float(value) for value in re.findall(r"FIRST_STEP (\d+\.\d+)", result.stdout)]
    if len(moments) < num_workers:
        raise SystemExit(f"the smallest script failed: {result.stderr[-2000:]}")
    return max(moments) - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-workers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", default="sample")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    ours: list[dict[str, float]] = []
    smallest: list[float] = []
    for number in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            ours.append(run_project(options.num_workers, options.data, Path(folder)))
            smallest.append(run_smallest(options.num_workers, Path(folder)))
        print(f"round {number + 1}: ours {ours[-1]['first step']:.1f} s, smallest {smallest[-1]:.1f} s", flush=True)
    print(f"\n{options.num_workers} workers, data {options.data}, median of {options.rounds}\n")
    before = 0.0
    for phase in ours[0]:
        moment = statistics.median(phases[phase] for phases in ours)
        print(f"  {phase:<16} {moment:6.1f} s  (+{moment - before:.1f})")
        before = moment
    ratio = statistics.median(phases["first step"] / other for phases, other in zip(ours, smallest, strict=True))
    print(f"  {'smallest script':<16} {statistics.median(smallest):6.1f} s")
    print(f"  {'ratio':<16} {ratio:6.2f}")
    settings = {"num_workers": options.num_workers, "data": options.data, "n": options.rounds}
    write_json(options.json, {"settings": settings, "ours": ours, "smallest": smallest, "ratio": ratio})


if __name__ == "__main__":
    main()
