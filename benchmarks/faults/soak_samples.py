"""Measure everything that belongs to a soak: processes, files, and Ray's object store."""

import http.client
import json
import os
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil

MARK = "VGG_SOAK_MARK"
# Without this, some of Ray's processes overwrite their environment, and with it the mark, by their title:
# https://github.com/dvarrazzo/py-setproctitle#environment-variables
KEEP_MARK = {"SPT_NOENV": "1"}
MIB = 2**20
# The kind of a process by a part of the first words of its command line; the first one counts.
KINDS = {
    "ray_app/main.py": "driver",
    "ray::TrainController": "controller",
    "ray::RayTrainWorker": "workers",
    "ray::DashboardAgent": "dashboard and agents",
    "ray::RuntimeEnvAgent": "dashboard and agents",
    "ray::": "other Ray workers",
    "gcs_server": "GCS",
    "raylet/raylet": "raylets",
    "dashboard": "dashboard and agents",
}
OTHER = "Ray's other processes"

Sample = dict[str, float]


class Sampler:
    """Takes samples of all processes that inherited this process's mark, of a run folder, and of Ray's folder."""

    def __init__(self, run: Path, ray_folder: Path) -> None:
        self._run = run
        self._ray_folder = ray_folder
        self._cpu_seconds: dict[int, float] = {}
        self._taken_at = 0.0

    def sample(self, now: float) -> Sample:
        """One value per quantity. `now` is in seconds; the use of CPUs is that since the previous sample."""
        values: Sample = {}
        cpu_seconds = {}
        for process, kind in own_processes():
            try:
                with process.oneshot():
                    measured = {
                        "memory MiB": process.memory_full_info().pss / MIB,
                        "open files": process.num_fds(),
                        "threads": process.num_threads(),
                        "processes": 1,
                    }
                    times = process.cpu_times()
            except psutil.Error:
                # It has exited.
                continue
            cpu_seconds[process.pid] = times.user + times.system
            if process.pid in self._cpu_seconds:
                used = cpu_seconds[process.pid] - self._cpu_seconds[process.pid]
                measured["CPU cores"] = used / (now - self._taken_at)
            for name, value in measured.items():
                for key in (name, f"{name}, {kind}"):
                    values[key] = values.get(key, 0.0) + value
        self._cpu_seconds, self._taken_at = cpu_seconds, now
        for name, folder in (("run folder", self._run), ("Ray's folder", self._ray_folder)):
            sizes = list(file_sizes(folder))
            values |= {f"{name} MiB": sum(sizes) / MIB, f"{name} files": len(sizes)}
        values["checkpoints"] = len(list(self._run.glob("checkpoint_*")))
        values["object store MiB"] = object_store_bytes(self._ray_folder) / MIB
        return values


def own_processes() -> Iterator[tuple[psutil.Process, str]]:
    """The processes that inherited this process's mark, also orphans, each with its kind; without this process."""
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(MARK) == os.environ[MARK]:
                command = " ".join(process.cmdline()[:3])
                yield process, next((kind for part, kind in KINDS.items() if part in command), OTHER)
        except psutil.Error:
            # It has exited, or belongs to another user.
            continue


def file_sizes(folder: Path) -> Iterator[int]:
    """Bytes on the disk of each file under a folder."""
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                yield os.lstat(os.path.join(parent, name)).st_blocks * 512
            except FileNotFoundError:
                continue


def object_store_bytes(ray_folder: Path) -> float:
    """Bytes in the object stores of all nodes, from the metrics that each node exports for Prometheus."""
    listed = ray_folder / "prom_metrics_service_discovery.json"
    groups = json.loads(listed.read_text()) if listed.exists() else []
    total = 0.0
    for target in {target for group in groups for target in group["targets"]}:
        try:
            with urllib.request.urlopen(f"http://{target}/metrics", timeout=5) as answer:
                lines = answer.read().decode().splitlines()
        except (OSError, http.client.HTTPException):
            # The node was removed, or is being removed.
            continue
        total += sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("ray_object_store_memory{"))
    return total
