"""Faults of processes: kill, freeze, and signal those of a run and of its Ray cluster."""

import signal
from collections.abc import Callable

from benchmarks.faults.cluster.hosts import Host, send_signal, wait_until
from benchmarks.faults.cluster.scene import NotInjected, Scene
from benchmarks.program import MAIN

# Part of the command line of each kind of process.
TARGETS = {
    "worker": "ray::RayTrainWorker",
    "controller": "ray::TrainController",
    "raylet": "/raylet/raylet ",
    "GCS": "gcs/gcs_server",
    "driver": str(MAIN),
}
SECONDS_TO_APPEAR = 60


def find(scene: Scene, target: str) -> tuple[Host, int]:
    """The host and ID of a random process of a kind; waits for one while the command runs.

    Raises:
        NotInjected: if there is none.
    """
    found: list[tuple[Host, int]] = []

    def look() -> bool:
        for host in scene.cluster.hosts:
            found.extend((host, pid) for pid, command in host.processes().items() if TARGETS[target] in command)
        return bool(found) or not scene.training.is_running

    wait_until(look, SECONDS_TO_APPEAR)
    if not found:
        raise NotInjected(f"there was no {target}")
    return scene.rng.choice(found)


def send(target: str, number: signal.Signals) -> Callable[[Scene], None]:
    """A fault: a signal to one process of a kind."""

    def inject(scene: Scene) -> None:
        host, pid = find(scene, target)
        scene.notes.append(host.name)
        send_signal(pid, number)

    return inject


def freeze(target: str) -> Callable[[Scene], None]:
    """A fault: SIGSTOP to one process of a kind, which later continues, or is killed in one of three cases."""

    def inject(scene: Scene) -> None:
        host, pid = find(scene, target)
        ends = scene.rng.random() < 1 / 3
        scene.notes.append(f"{host.name}, then kill" * ends or f"{host.name}, then continue")
        # nsenter stops with the driver, and would not notice its end.
        scene.undo.callback(scene.training.process.send_signal, signal.SIGCONT)
        scene.undo.callback(send_signal, pid, signal.SIGKILL if ends else signal.SIGCONT)
        send_signal(pid, signal.SIGSTOP)

    return inject
