"""Train for hours with a fault every minute, and check that nothing grows.

    python -m benchmarks.faults.soak --minutes 240 --fault-every 60

Trains a sixtieth of CIFAR-10 with two workers, on a cluster of three Ray nodes on this machine that lives as long as
the soak. The faults, each kind once in every six, in random order:

    worker kill     kill -9 of one worker
    worker freeze   SIGSTOP of one worker, for good
    corruption      a random byte of the newest checkpoint is changed, then kill -9 of one worker
    driver kill     kill -9 of the command; then resume the run
    terminate       SIGTERM to the command; expects exit code 143; then resume the run
    node drain      the node of one worker is drained and then removed, like a spot instance; another node joins

Samples memory (PSS), CPUs, open files, threads, processes, files, and the object store every ten seconds. Growth is
that of the medians between two faults, of samples taken while the run trained undisturbed, after the warm-up. At the
end, the command is stopped, and the run is resumed for two more epochs and must finish. Exit code 1 if a quantity
surely grows by more than its threshold (benchmarks/faults/soak_growth.py), if there are too few samples to tell, or if
anything fails.
"""

import math
import os
import random
import statistics
import sys
import tempfile
import threading
import time
import uuid
from argparse import Namespace
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.faults.soak_growth import Growth, judge, print_table, too_few
from benchmarks.faults.soak_run import KINDS, Fault, SoakedRun
from benchmarks.faults.soak_samples import KEEP_MARK, MARK, Sample, Sampler
from benchmarks.program import end_on_signals
from benchmarks.record import new_parser, write_json
from vgg_ddp.run.files import read_metrics
from vgg_ddp.run.storage import Folder

SECONDS_BETWEEN_SAMPLES = 10.0
# What Ray's control store (GCS) remembers of what has ended: by default 100,000 actors, processes and tasks, and 1,000
# nodes. A run of a few hours never reaches these limits, so the history would look like a leak.
HISTORY = tuple(f"RAY_maximum_gcs_{kind}_cached_count" for kind in ("destroyed_actor", "dead_worker", "dead_node"))
HISTORY += ("RAY_task_events_max_num_task_in_gcs",)
# After the first step, samples count only once the caches of a new worker are warm.
SECONDS_TO_SETTLE = 5.0


@dataclass(frozen=True)
class Taken:
    """A sample, the number of faults before it, and whether the run trained undisturbed while it was taken."""

    hours: float
    faults: int
    is_steady: bool
    values: Sample


@dataclass
class Record:
    """What a soak has found so far."""

    faults: list[Fault] = field(default_factory=list)
    taken: list[Taken] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class Watch:
    """Takes samples in a thread.

    Attributes:
        faults: number of faults so far.
        steady_since: when the run took its first step after the last fault, in seconds since 1970; infinity before it.
    """

    def __init__(self, run: SoakedRun, started_at: float, taken: list[Taken]) -> None:
        self.faults = 0
        self.steady_since = math.inf
        self._taken = taken
        self._run = run
        self._sampler = Sampler(run.folder, run.ray_folder)
        self._started_at = started_at
        self._ended = threading.Event()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Take samples until the block ends."""
        with ThreadPoolExecutor(1) as pool:
            self._future = pool.submit(self._take_all)
            try:
                yield
            finally:
                self._ended.set()
        self.check()

    def check(self) -> None:
        """Raise what the thread has raised."""
        if self._future.done():
            self._future.result()

    def _take_all(self) -> None:
        while not self._ended.wait(SECONDS_BETWEEN_SAMPLES):
            now, faults, since = time.time(), self.faults, self.steady_since
            values = self._sampler.sample(now)
            times = [row["time"] for row in read_metrics(Folder.at(str(self._run.folder))) if row["time"] > since]
            if len(times) > 2:
                values["seconds an epoch"] = (times[-1] - times[0]) / (len(times) - 1)
            is_steady = now > since + SECONDS_TO_SETTLE and self.steady_since == since
            self._taken.append(Taken((now - self._started_at) / 3600, faults, is_steady, values))


def soak(run: SoakedRun, watch: Watch, faults: list[Fault], options: Namespace) -> None:
    """Train with faults, and add them to the list, until the time is over; print a line per fault."""
    fault_every, rng = options.fault_every, random.Random(options.seed)
    started, started_at = time.monotonic(), time.time()
    kinds: list[str] = []
    print(f"{'minute':>6}  {'fault':<13} {'from step':>9} {'first step s':>12}", flush=True)
    run.start()
    if problem := run.wait_for_step(started_at):
        raise SystemExit(problem)
    watch.steady_since = time.time()
    while time.monotonic() - started < options.minutes * 60 - fault_every:
        # After a long recovery, the next fault is late: samples need some time without one.
        time.sleep(max(fault_every / 3, started + (len(faults) + 1) * fault_every - time.monotonic()))
        watch.check()
        kinds = kinds or rng.sample(KINDS, len(KINDS))
        minute = (time.monotonic() - started) / 60
        watch.steady_since = math.inf
        watch.faults += 1
        fault = run.hit(kinds.pop(), minute, rng)
        faults.append(fault)
        seconds = "-" if fault.seconds is None else f"{fault.seconds:.1f}"
        print(f"{minute:>6.1f}  {fault.kind:<13} {fault.step:>9} {seconds:>12}  {fault.problem}", flush=True)
        watch.steady_since = time.time()


def growths(taken: Sequence[Taken], warm_up_minutes: float) -> list[Growth]:
    """The growth of each quantity, by the medians of the undisturbed samples between two faults."""
    points: dict[str, tuple[list[float], list[float]]] = {}
    steady = [sample for sample in taken if sample.is_steady and sample.hours * 60 >= warm_up_minutes]
    for number in sorted({sample.faults for sample in steady}):
        between = [sample for sample in steady if sample.faults == number]
        for name in sorted({name for sample in between for name in sample.values}):
            values = [sample.values[name] for sample in between if name in sample.values]
            hours, medians = points.setdefault(name, ([], []))
            hours.append(statistics.mean(sample.hours for sample in between))
            medians.append(statistics.median(values))
    return [judge(name, *points[name]) for name in sorted(points)]


def print_faults(faults: Sequence[Fault]) -> None:
    print(f"\n{'fault':<13} {'count':>5} {'median s':>9} {'longest s':>9}")
    for kind in KINDS:
        if seconds := [fault.seconds for fault in faults if fault.kind == kind and fault.seconds]:
            print(f"{kind:<13} {len(seconds):>5} {statistics.median(seconds):>9.1f} {max(seconds):>9.1f}")


def main() -> int:
    parser = new_parser(__doc__)
    parser.add_argument("--minutes", type=float, default=240)
    parser.add_argument("--fault-every", type=float, default=60, help="seconds; default: %(default)s")
    parser.add_argument("--warm-up", type=float, help="minutes; default: a tenth of --minutes")
    parser.add_argument("--seed", type=int, default=0, help="of the faults; default: %(default)s")
    parser.add_argument(
        "--history",
        type=int,
        default=50,
        help="how many dead actors, processes and nodes, and how many tasks, GCS remembers; default: %(default)s",
    )
    options = parser.parse_args()
    warm_up = options.minutes / 10 if options.warm_up is None else options.warm_up
    os.environ |= {MARK: uuid.uuid4().hex, **KEEP_MARK, "RAY_USAGE_STATS_ENABLED": "0"}
    os.environ |= dict.fromkeys(HISTORY, str(options.history))
    end_on_signals()
    record = Record()
    try:
        with tempfile.TemporaryDirectory(prefix="soak-", ignore_cleanup_errors=True) as name:
            # A private home directory: with another cluster's token from the user's, the nodes could not connect.
            os.environ.update(HOME=name, RAY_TMPDIR=name)
            with SoakedRun(Path(name)) as run:
                watch = Watch(run, time.time(), record.taken)
                with watch.running():
                    soak(run, watch, record.faults, options)
                if problem := run.finish():
                    record.problems.append(problem)
    except BaseException as error:
        record.problems.append(f"the soak ended early: {error!r}")
        raise
    finally:
        # Whatever ends the soak, hours of samples are not lost.
        exit_code = report(record, warm_up, options)
    return exit_code


def report(record: Record, warm_up_minutes: float, options: Namespace) -> int:
    """Print and write what a soak has found; return the exit code."""
    found = growths(record.taken, warm_up_minutes)
    print_faults(record.faults)
    print_table(found)
    problems = [fault.problem for fault in record.faults if fault.problem] + record.problems
    if problem := too_few(found):
        problems.append(problem)
    growing = [growth.name for growth in found if growth.verdict == "GROWS"]
    print("", *problems, sep="\n")
    print(f"{len(record.faults)} faults; problems: {len(problems)}; growing: {', '.join(growing) or 'nothing'}")
    results: dict[str, Any] = {"minutes": options.minutes, "fault_every": options.fault_every, "seed": options.seed}
    results["history"] = options.history
    results |= {"problems": problems, "faults": [vars(fault) for fault in record.faults]}
    results |= {"growth": [vars(growth) | {"verdict": growth.verdict} for growth in found]}
    write_json(options.json, results | {"samples": [vars(sample) for sample in record.taken]})
    return 1 if problems or growing else 0


if __name__ == "__main__":
    sys.exit(main())
