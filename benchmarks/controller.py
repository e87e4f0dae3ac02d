"""What Ray Train's controller, and the processes of Ray's head node, take to watch many workers.

    python benchmarks/controller.py --workers 1 25 50 100

The workers are placeholders: they are started as those of a run are, report that they live as often as those of a run,
and otherwise sleep. Measured is the processor time of the controller and of the head node's processes meanwhile.
"""

import argparse
import os
import statistics
import tempfile
import threading
import time
from pathlib import Path

import psutil
import ray
from program import ROOT
from ray.train import RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from record import write_json

# By the beginnings of their command lines.
WATCHED = {
    "controller": "ray::TrainController",
    "head node: GCS": "gcs_server",
    "node: raylet": "raylet",
    "one worker": "ray::RayTrainWorker",
}
SAMPLES = 3


def processes_of(kind: str) -> list[psutil.Process]:
    """This cluster's processes of a kind."""
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


def shares(seconds: float) -> dict[str, float]:
    """The part of a core that each kind of process takes, over so many seconds; of several processes the mean."""
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
    """Some measurements, one after the other, while so many workers sleep."""
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
                raise SystemExit("the placeholders did not start")
            time.sleep(1)
        time.sleep(seconds / 2)
        return [shares(seconds) for _ in range(SAMPLES)]
    finally:
        gate.touch()
        training.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 25, 50, 100])
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement; default: %(default)s")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results: dict[int, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="ctl-") as home:
        os.environ |= {"HOME": home, "RAY_TMPDIR": home, "RAY_USAGE_STATS_ENABLED": "0"}
        # As main.py sets it.
        os.environ |= {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25", "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "1200"}
        os.environ["PYTHONPATH"] = str(ROOT / "ray_app")
        ray.init(include_dashboard=False, logging_level="ERROR", log_to_driver=False)
        for count in options.workers:
            results[count] = measure(count, options.seconds, home)
            line = "  ".join(f"{kind} {share:6.2%}" for kind, share in medians(results[count]).items())
            print(f"{count:>5} workers  {line}", flush=True)
        ray.shutdown()
    most, least = max(results), min(results)
    low, high = medians(results[least]), medians(results[most])
    slopes = {kind: (high[kind] - low[kind]) / max(1, most - least) for kind in WATCHED}
    print(
        f"\nof a core for each worker more: controller {slopes['controller']:.4%}, GCS {slopes['head node: GCS']:.4%}"
    )
    write_json(
        options.json, {"settings": {"seconds": options.seconds, "n": SAMPLES}, "shares": results, "slopes": slopes}
    )


if __name__ == "__main__":
    main()
