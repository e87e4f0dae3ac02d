"""Cost of Ray during training: the same loop under Ray Train and under torchrun, in turn.

    python -m benchmarks.speed.overhead --rounds 3
    python -m benchmarks.speed.overhead --rounds 3 --num-workers 1 --spare-cores 1

Compares the training time of the second epoch, without start-up and evaluation; both compute the same values bit for
bit. Under Ray, the loop also checks for drained nodes, updates Ray's metrics, and reports the epoch; the cost of the
last two is printed separately. With --spare-cores, training leaves that many cores to Ray's own processes.
"""

import os
import statistics
import tempfile
import time
import timeit
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import ray
import ray.train
import torch
from ray.train import LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from torch import nn

from benchmarks.program import Trained, train
from benchmarks.record import new_parser, write_json
from vgg_ddp.driver import cluster, ray_environment
from vgg_ddp.observe.gauges import GAUGES
from vgg_ddp.observe.telemetry import Telemetry
from vgg_ddp.run.files import COLUMNS
from vgg_ddp.run.saver import Saver
from vgg_ddp.run.storage import Folder

REPORTS, SECONDS_BETWEEN_REPORTS = 20, 1.0
# Python runs this at start-up. The process then sees fewer cores than the machine has.
FEWER_CORES = """
import os

cores = sorted(os.sched_getaffinity(0))[{spare}:]
os.sched_getaffinity = lambda pid: set(cores)
"""


@contextmanager
def spare_cores(count: int) -> Iterator[None]:
    """Make programs that start in this context use `count` cores fewer, without binding them to the other cores."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "sitecustomize.py").write_text(FEWER_CORES.format(spare=count))
        with patch.dict(os.environ, PYTHONPATH=folder):
            yield


def measure_metrics() -> float:
    """Seconds per step to record all metrics: the step's phases, its histograms, and every gauge."""
    ray.init(num_cpus=1, include_dashboard=False, logging_level="ERROR")
    run = Folder.at("benchmark")
    telemetry = Telemetry(run, Saver(run, 0), 0, torch.device("cpu"), nn.Linear(1, 1), under_ray=True, profiled=False)
    values = dict.fromkeys(GAUGES, 1.0)

    def step() -> None:
        telemetry.start_step(measured=True)
        for phase in ("data", "compute", "communication", "compute", "communication"):
            telemetry.mark(phase)
        telemetry.end_step()
        telemetry.show(values)
        telemetry.show_rank()

    seconds = min(timeit.repeat(step, number=100, repeat=5)) / 100
    ray.shutdown()
    return seconds


def measure_reports(num_workers: int) -> list[float]:
    """Seconds of each `ray.train.report` on rank 0, which waits for all ranks."""

    def report() -> list[float]:
        seconds = []
        for epoch in range(REPORTS):
            time.sleep(SECONDS_BETWEEN_REPORTS)
            started = time.perf_counter()
            ray.train.report(dict.fromkeys(COLUMNS, float(epoch)))
            seconds.append(time.perf_counter() - started)
        return seconds

    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ):
        cluster.connect(ray_environment.prepare(ray_environment.LOCAL))
        scaling = ScalingConfig(num_workers=num_workers, resources_per_worker={"CPU": 1 / num_workers})
        run_config = RunConfig(storage_path=folder, logging_config=LoggingConfig(log_level="WARNING"))
        trainer = TorchTrainer(report, scaling_config=scaling, run_config=run_config)
        seconds: list[float] = trainer.fit().return_value
        ray.shutdown()
    return seconds


def measure_epochs(programs: dict[str, Callable[[], Trained]], rounds: int) -> tuple[dict[str, list[float]], float]:
    """Seconds of each program's second epoch, by round, and the steps in that epoch."""
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    steps = 0.0
    for number in range(rounds):
        for name, program in programs.items():
            first, second = program().rows
            steps = second["step"] - first["step"]
            seconds[name].append(second["seconds"])
            print(f"round {number + 1}: {name:<10} {second['seconds'] / steps * 1000:8.1f} ms/step", flush=True)
    return seconds, steps


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--num-workers", type=int, default=2)
    parser.add_argument("--spare-cores", type=int, default=0, help="cores that training does not use")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", default="sample")
    parser.add_argument("--batch-size", type=int, default=100, help="global; default: %(default)s")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    options = parser.parse_args()
    flags = ["--data", options.data, "--recipe", "classic", "--epochs", 2]
    flags += ["--batch-size", options.batch_size, "--precision", options.precision]
    programs: dict[str, Callable[[], Trained]] = {
        "torchrun": lambda: train(*flags, processes=options.num_workers),
        "Ray Train": lambda: train(*flags, "--num-workers", options.num_workers),
    }
    with spare_cores(options.spare_cores):
        seconds, steps = measure_epochs(programs, options.rounds)
    ratios = [ours / theirs for ours, theirs in zip(seconds["Ray Train"], seconds["torchrun"], strict=True)]
    metrics, reports = measure_metrics(), measure_reports(options.num_workers)
    share = metrics * steps / statistics.median(seconds["Ray Train"])
    print(
        f"\nRay Train compared with torchrun: {statistics.median(ratios) - 1:+.1%} (median of {options.rounds} pairs)"
    )
    print(f"all metrics of a step: {metrics * 1e6:.0f} us, {share:.3%} of the step")
    report = statistics.median(reports)
    print(f"ray.train.report: {report * 1000:.1f} ms (median of {REPORTS}), {report / 10:.2%} of an epoch of 10 s")
    settings = {"num_workers": options.num_workers, "batch_size": options.batch_size, "n": options.rounds}
    settings |= {"precision": options.precision, "spare_cores": options.spare_cores}
    results = {
        "seconds_of_second_epoch": seconds,
        "ratios": ratios,
        "seconds_of_metrics": metrics,
        "seconds_of_reports": reports,
    }
    write_json(options.json, {"settings": settings, **results})


if __name__ == "__main__":
    main()
