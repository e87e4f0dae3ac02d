"""What Ray costs while training goes on: the same loop under Ray Train and under torchrun, in turn.

    python benchmarks/overhead.py --rounds 3
    python benchmarks/overhead.py --rounds 3 --num-workers 1 --spare-cores 1

Compared are seconds of the second epoch, evaluation apart: starting is over, and both compute the same to the bit. With
Ray, the loop also looks for drained nodes and feeds Ray's metrics; what those take is given apart. With --spare-cores,
training leaves that many cores alone, which Ray's own processes then have for themselves.
"""

import argparse
import os
import statistics
import sys
import tempfile
import timeit
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import ray
import torch
from program import ROOT, train
from record import write_json
from torch import nn

sys.path.insert(0, str(ROOT / "ray_app"))
from vgg_ddp.gauges import GAUGES
from vgg_ddp.saving import Saver
from vgg_ddp.storage import Folder
from vgg_ddp.telemetry import Telemetry


def seconds_of_metrics() -> float:
    """Seconds that all metrics of a step take: its split into phases, its histograms, and every gauge."""
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


# Python runs this at its start: the process then takes the machine for smaller than it is.
FEWER_CORES = """
import os

cores = sorted(os.sched_getaffinity(0))[{spare}:]
os.sched_getaffinity = lambda pid: set(cores)
"""


@contextmanager
def cores_left_alone(spare: int) -> Iterator[None]:
    """While this lasts, programs that are started count that many cores less as theirs; they are not bound to them."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "sitecustomize.py").write_text(FEWER_CORES.format(spare=spare))
        with patch.dict(os.environ, PYTHONPATH=folder):
            yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-workers", type=int, default=2)
    parser.add_argument("--spare-cores", type=int, default=0, help="fewer than there are")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", default="sample")
    parser.add_argument("--batch-size", type=int, default=100, help="global; default: %(default)s")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    flags = ["--data", options.data, "--recipe", "classic", "--epochs", 2]
    flags += ["--batch-size", options.batch_size, "--precision", options.precision]
    programs = {
        "torchrun": lambda: train(*flags, processes=options.num_workers),
        "Ray Train": lambda: train(*flags, "--num-workers", options.num_workers),
    }
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    steps = 0.0
    with cores_left_alone(options.spare_cores):
        for number in range(options.rounds):
            for name, program in programs.items():
                first, second = program().rows
                steps = second["step"] - first["step"]
                seconds[name].append(second["seconds"])
                print(f"round {number + 1}: {name:<10} {second['seconds'] / steps * 1000:8.1f} ms a step", flush=True)
    ratios = [ours / theirs for ours, theirs in zip(seconds["Ray Train"], seconds["torchrun"], strict=True)]
    ratio = statistics.median(ratios)
    metrics = seconds_of_metrics()
    share = metrics * steps / statistics.median(seconds["Ray Train"])
    print(f"\nRay Train against torchrun: {ratio - 1:+.1%} (median of {options.rounds} pairs)")
    print(f"all metrics of a step: {metrics * 1e6:.0f} us, {share:.3%} of it")
    settings = {"num_workers": options.num_workers, "batch_size": options.batch_size, "n": options.rounds}
    settings |= {"precision": options.precision, "spare_cores": options.spare_cores}
    results = {"seconds_of_second_epoch": seconds, "ratios": ratios, "seconds_of_metrics": metrics}
    write_json(options.json, {"settings": settings, **results})


if __name__ == "__main__":
    main()
