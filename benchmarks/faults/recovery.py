"""Time from kill -9 of a worker to the first new step, by phase, with and without spare processes.

    python -m benchmarks.faults.recovery --rounds 2 --kills 2
    python -m benchmarks.faults.recovery --rounds 2 --kills 2 --against ../other-checkout

Each round trains once without spare processes, or with --against in the other checkout, and once as usual. In each run,
one worker is killed several times: 20 seconds after the latest start, when the spare processes wait.
"""

import argparse
import json
import math
import os
import signal
import statistics
import tempfile
import time
from pathlib import Path

import psutil

from benchmarks.faults.training import LIMIT_SECONDS, Training, first_step_after
from benchmarks.program import MAIN, end_on_signals
from benchmarks.record import new_parser, write_json

# The end of each phase; the last three are in startup.json.
PHASES = ("failure noticed", "processes started", "workers started", "model built", "first step")
SECONDS_BEFORE_KILL = 20.0
SPARE = "ray::IDLE"

Times = dict[str, float]


def recover(training: Training, run: Path, restart: int) -> Times:
    """Kill a worker, and wait for the first new step; return the seconds from the kill to the end of each phase."""
    killed = time.time()
    os.kill(training.workers()[-1], signal.SIGKILL)
    while f"restart {restart} of" not in training.log.read_text() and training.process.poll() is None:
        if time.time() - killed > LIMIT_SECONDS:
            raise SystemExit(f"no restart within {LIMIT_SECONDS} s: {training.log.read_text()[-2000:]}")
        time.sleep(0.01)
    noticed = time.time()
    if math.isnan(first_step_after(training, run, killed)):
        raise SystemExit(f"the run ended, or takes no step: {training.log.read_text()[-2000:]}")
    phases = json.loads((run / "startup.json").read_text())
    created = max(psutil.Process(pid).create_time() for pid in training.workers())
    moments = {PHASES[0]: noticed, PHASES[1]: max(noticed, created)} | {name: phases[name] for name in PHASES[2:]}
    return {name: moment - killed for name, moment in moments.items()}


def measure(folder: Path, main: Path, flags: list[object], kills: int) -> tuple[list[Times], float]:
    """Train, and kill a worker several times; return the phases of each recovery, and the MiB of a spare process."""
    training = Training(folder, *flags, main=main)
    run, recoveries, spare_mib = folder / "runs" / "recovery", [], 0.0
    try:
        first_step_after(training, run, 0)
        for number in range(1, kills + 1):
            time.sleep(SECONDS_BEFORE_KILL)
            spare_mib = max(spare_mib, largest_spare(training))
            recoveries.append(recover(training, run, number))
    finally:
        training.process.send_signal(signal.SIGINT)
        training.wait(60)
        training.wait_until_all_gone(60)
    return recoveries, spare_mib


def largest_spare(training: Training) -> float:
    """MiB of the largest idle process of Ray that no other process shares; 0 if there is none."""
    spares = [pid for pid, command in training.processes().items() if command.startswith(SPARE)]
    return max((psutil.Process(pid).memory_full_info().uss / 2**20 for pid in spares), default=0.0)


def print_phases(recoveries: dict[str, list[Times]]) -> None:
    """Print the end of each phase and its duration: medians over all kills."""
    for name, times in recoveries.items():
        previous = 0.0
        print(f"\n{name}, median of {len(times)}:")
        for phase in PHASES:
            moment = statistics.median(recovery[phase] for recovery in times)
            print(f"  {phase:<18} {moment:6.2f} s  (+{moment - previous:.2f})")
            previous = moment


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--kills", type=int, default=2, help="of each run; default: %(default)s")
    parser.add_argument("--num-workers", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--against", type=Path, help="compare with another checkout instead of --no-spare-workers")
    options = parser.parse_args()
    end_on_signals()
    recoveries, spares = run_rounds(options)
    print_phases(recoveries)
    before, after = (statistics.median(times["first step"] for times in each) for each in recoveries.values())
    print(f"\nratio {after / before:.2f}; a spare process takes {max(spares):.0f} MiB")
    settings = {name: str(value) for name, value in vars(options).items()}
    write_json(options.json, {"settings": settings, "recoveries": recoveries, "spare_mib": max(spares)})


def run_rounds(options: argparse.Namespace) -> tuple[dict[str, list[Times]], list[float]]:
    """The recoveries of both variants, and the MiB of a spare process in each run; prints a line for each run."""
    flags: list[object] = ["--num-workers", options.num_workers, "--data", "sample", "--epochs", 1000]
    flags += ["--recipe", "classic", "--batch-size", 120, "--precision", "fp32", "--checkpoint-every-seconds", 2]
    flags += ["--max-failures", options.kills, "--run-name", "recovery"]
    usual: tuple[Path, list[object]] = (MAIN, flags)
    if options.against:
        variants = {"other checkout": (options.against.resolve() / "ray_app" / "main.py", flags), "this one": usual}
    else:
        variants = {"without spares": (MAIN, [*flags, "--no-spare-workers"]), "with spares": usual}
    recoveries: dict[str, list[Times]] = {name: [] for name in variants}
    spares = []
    for number in range(1, options.rounds + 1):
        for name, (program, its_flags) in variants.items():
            with tempfile.TemporaryDirectory(prefix="recovery-", ignore_cleanup_errors=True) as folder:
                # A private home directory: Ray would use a token from the user's.
                os.environ.update(HOME=folder, RAY_TMPDIR=folder, RAY_USAGE_STATS_ENABLED="0")
                times, mib = measure(Path(folder), program, its_flags, options.kills)
            recoveries[name] += times
            spares.append(mib)
            print(f"round {number}, {name}: " + ", ".join(f"{each['first step']:.1f} s" for each in times), flush=True)
    return recoveries, spares


if __name__ == "__main__":
    main()
