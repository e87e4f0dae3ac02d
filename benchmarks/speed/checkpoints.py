"""Cost of a checkpoint: the same run with many checkpoints and with one, in turn.

    python -m benchmarks.speed.checkpoints --rounds 5

A checkpoint is copied immediately and written while training continues, which takes processor time from training on a
machine without spare cores. The cost of one checkpoint is the difference in training time (without evaluation) divided
by the number of checkpoints. Its share is printed for the default of --checkpoint-every-seconds.
"""

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.program import MAIN
from benchmarks.record import new_parser, write_json
from vgg_ddp.run.files import read_metrics
from vgg_ddp.run.storage import Folder

DEFAULT_SECONDS = 300.0
NEVER = 1e9


def train(num_workers: int, every_seconds: float, flags: list[str]) -> tuple[float, int]:
    """Train once; return the seconds of training and the number of checkpoints written.

    Raises:
        SystemExit: if the run fails.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [sys.executable, str(MAIN), "--num-workers", str(num_workers), *flags]
        command += ["--checkpoint-every-seconds", str(every_seconds), "--storage-path", name, "--run-name", "run"]
        log = folder / "log"
        with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
            # Older checkpoints are deleted during the run.
            seen: set[str] = set()
            while process.poll() is None:
                seen |= {path.parent.name for path in (folder / "run").glob("checkpoint_*/manifest.json")}
                try:
                    process.wait(0.2)
                except subprocess.TimeoutExpired:
                    continue
        if process.returncode:
            raise SystemExit(log.read_text()[-2000:])
        return sum(row["seconds"] for row in read_metrics(Folder.at(str(folder / "run")))), len(seen)


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--num-workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", default="sample")
    parser.add_argument("--every-seconds", type=float, default=2.0)
    options = parser.parse_args()
    flags = ["--data", options.data, "--recipe", "classic", "--epochs", "1", "--batch-size", "100"]
    costs: list[float] = []
    for number in range(options.rounds):
        calm_seconds, calm_count = train(options.num_workers, NEVER, flags)
        seconds, count = train(options.num_workers, options.every_seconds, flags)
        if count <= calm_count:
            raise SystemExit("the run ended before its first extra checkpoint: give a smaller --every-seconds")
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
