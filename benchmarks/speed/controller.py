"""CPU time that Ray Train's controller and the head node's processes need for many workers.

    python -m benchmarks.speed.controller --workers 1 25 50 100

The workers are placeholders: they start like the workers of a run, report their health at the same rate, and otherwise
sleep.
"""

import os
import statistics
import tempfile
import threading
import time
from pathlib import Path

import psutil
import ray
from ray.train import RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from benchmarks.program import ROOT
from benchmarks.record import new_parser, write_json

# Found by the start of their command lines.
WATCHED = {
    "controller": "ray::TrainController",
    "head node: GCS": "gcs_server",
    "node: raylet": "raylet",
    "one worker": "ray::RayTrainWorker",
}
SAMPLES = 3


def processes_of(kind: str) -> list[psutil.Process]:
    """This cluster's processes of one kind."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            command = " ".join(process.cmdline())
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if WATCHED[kind] in command.split(" --")[0]:
            found.append(process)
    return found


def processor_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def core_shares(seconds: float) -> dict[str, float]:
    """Fraction of a core that one process of each kind uses, averaged over this many seconds."""
    watched = {kind: processes_of(kind) for kind in WATCHED}
    before = {kind: [processor_seconds(process) for process in found] for kind, found in watched.items()}
    started = time.monotonic()
    time.sleep(seconds)
    passed = time.monotonic() - started
    return {
        kind: statistics.mean(
            (processor_seconds(process) - earlier) / passed
            for process, earlier in zip(found, before[kind], strict=True)
        )
        for kind, found in watched.items()
    }


def medians(samples: list[dict[str, float]]) -> dict[str, float]:
    return {kind: statistics.median(sample[kind] for sample in samples) for kind in WATCHED}


def measure(count: int, seconds: float, folder: str) -> list[dict[str, float]]:
    """Start `count` placeholder workers, and measure several times while they sleep."""
    gate = Path(folder, f"over-{count}")
    ready = Path(folder, f"ready-{count}")
    ready.mkdir()

    def wait() -> None:
        (ready / str(ray.train.get_context().get_world_rank())).touch()
        while not gate.exists():
            time.sleep(1)

    trainer = DataParallelTrainer(
        wait,
        scaling_config=ScalingConfig(num_workers=count, resources_per_worker={"CPU": 0.001}),
        run_config=RunConfig(name=f"placeholders-{count}", storage_path=folder),
    )
    training = threading.Thread(target=trainer.fit)
    training.start()
    try:
        while len(list(ready.iterdir())) < count:
            if not training.is_alive():
                raise SystemExit("the placeholder workers did not start")
            time.sleep(1)
        time.sleep(seconds / 2)
        return [core_shares(seconds) for _ in range(SAMPLES)]
    finally:
        gate.touch()
        training.join()


def measure_counts(counts: list[int], seconds: float) -> dict[int, list[dict[str, float]]]:
    """Measurements by number of workers, on a Ray cluster on this machine; prints one line for each number."""
    results = {}
    with tempfile.TemporaryDirectory(prefix="ctl-") as home:
        os.environ |= {"HOME": home, "RAY_TMPDIR": home, "RAY_USAGE_STATS_ENABLED": "0"}
        # The same settings as main.py.
        os.environ |= {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25", "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "1200"}
        os.environ["PYTHONPATH"] = str(ROOT / "ray_app")
        ray.init(include_dashboard=False, logging_level="ERROR", log_to_driver=False)
        for count in counts:
            results[count] = measure(count, seconds, home)
            line = "  ".join(f"{kind} {share:6.2%}" for kind, share in medians(results[count]).items())
            print(f"{count:>5} workers  {line}", flush=True)
        ray.shutdown()
    return results


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 25, 50, 100])
    parser.add_argument("--seconds", type=float, default=20.0, help="length of each measurement; default: %(default)s")
    options = parser.parse_args()
    results = measure_counts(options.workers, options.seconds)
    most, least = max(results), min(results)
    low, high = medians(results[least]), medians(results[most])
    slopes = {kind: (high[kind] - low[kind]) / max(1, most - least) for kind in WATCHED}
    print(
        f"\neach additional worker needs {slopes['controller']:.4%} of a core in the controller "
        f"and {slopes['head node: GCS']:.4%} in the GCS"
    )
    write_json(
        options.json, {"settings": {"seconds": options.seconds, "n": SAMPLES}, "shares": results, "slopes": slopes}
    )


if __name__ == "__main__":
    main()
