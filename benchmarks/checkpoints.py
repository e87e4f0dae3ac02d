"""What a checkpoint costs: the same run with many checkpoints and with one, in turn.

    python benchmarks/checkpoints.py --rounds 5

A checkpoint is copied at once and written while training goes on, which takes processor time from it on a machine
without spare cores. The cost of one is the difference in training time (evaluation apart) over the number of
checkpoints; its share is given for the default of --checkpoint-every-seconds.
"""

import argparse
import csv
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from program import ROOT
from record import write_json

DEFAULT_SECONDS = 300.0
NEVER = 1e9


def train(num_workers: int, every_seconds: float, folder: Path, flags: list[str]) -> tuple[float, int]:
    """Seconds of training, and how many checkpoints were written meanwhile."""
    main = [sys.executable, str(ROOT / "ray_app" / "main.py"), "--num-workers", str(num_workers), *flags]
    options = ["--checkpoint-every-seconds", str(every_seconds), "--storage-path", str(folder), "--run-name", "run"]
    log = folder / "log"
    with log.open("w") as output, subprocess.Popen([*main, *options], stdout=output, stderr=output) as process:
        seen: set[str] = set()
        while process.poll() is None:
            seen |= {path.parent.name for path in (folder / "run").glob("checkpoint_*/manifest.json")}
            try:
                process.wait(0.2)
            except subprocess.TimeoutExpired:
                continue
        if process.returncode:
            raise SystemExit(log.read_text()[-2000:])
    with (folder / "run" / "metrics.csv").open() as file:
        return sum(float(row["seconds"]) for row in csv.DictReader(file)), len(seen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", default="sample")
    parser.add_argument("--every-seconds", type=float, default=2.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    flags = ["--data", options.data, "--recipe", "classic", "--epochs", "1", "--batch-size", "100"]
    costs: list[float] = []
    for number in range(options.rounds):
        with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as many:
            calm_seconds, calm_count = train(options.num_workers, NEVER, Path(one), flags)
            seconds, count = train(options.num_workers, options.every_seconds, Path(many), flags)
        if count <= calm_count:
            raise SystemExit("no checkpoint was written meanwhile: give a smaller --every-seconds")
        costs.append((seconds - calm_seconds) / (count - calm_count))
        print(
            f"round {number + 1}: {calm_seconds:.2f} s with {calm_count} checkpoint(s), {seconds:.2f} s with {count}: "
            f"{costs[-1] * 1000:.0f} ms each",
            flush=True,
        )
    cost = statistics.median(costs)
    print(f"\none checkpoint: {cost * 1000:.0f} ms of training (median of {options.rounds})")
    print(f"every {DEFAULT_SECONDS:.0f} s, the default: {cost / DEFAULT_SECONDS:.3%} of the time")
    settings = {"num_workers": options.num_workers, "every_seconds": options.every_seconds, "n": options.rounds}
    write_json(options.json, {"settings": settings, "costs_seconds": costs, "share": cost / DEFAULT_SECONDS})


if __name__ == "__main__":
    main()
