"""Rounds on one machine: disturb a run on its own Ray cluster, at a random step."""

import os
import random
import re
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.faults.training import (
    DRAIN_SECONDS,
    Training,
    drain,
    estimate_step,
    first_step_after,
    newest_step,
    wait_for_step,
)

KINDS = ("worker kill", "driver kill", "terminate", "node drain", "corruption")


@dataclass
class Round:
    """One disturbed run.

    Attributes:
        step: step of the checkpoint that training resumed from.
        lost_steps: estimated steps that were repeated.
        recovery_seconds: time to the first new step, from the disturbance or from the command that resumes.
        same: whether the final weights equal those of the undisturbed run, byte for byte.
        problem: any other failure; empty if there was none.
    """

    kind: str
    step: int
    lost_steps: int
    recovery_seconds: float
    same: bool
    problem: str = ""


def corrupt(run: Path, rng: random.Random) -> None:
    """Invert one byte of the newest checkpoint."""
    state = max(run.glob("checkpoint_*/state.pt"))
    with state.open("r+b") as file:
        position = rng.randrange(state.stat().st_size)
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 255]))


def disturb(kind: str, folder: Path, flags: list[object], total_steps: int, rng: random.Random) -> Round:
    """Train once, with one disturbance."""
    run = folder / "runs" / "chaos"
    flags = [*flags, "--run-name", "chaos"]
    hit_after = rng.randrange(1, max(2, total_steps * 3 // 4))
    if kind == "node drain":
        return drain_node(folder, run, flags, hit_after)
    training = Training(folder, *flags)
    wait_for_step(training, run, hit_after)
    time.sleep(rng.random())
    if kind == "worker kill":
        return kill_worker(training, run, rng)
    return end_and_resume(kind, training, folder, run, rng)


def kill_worker(training: Training, run: Path, rng: random.Random) -> Round:
    """Kill one worker; Ray Train restarts all of them."""
    os.kill(rng.choice(training.workers()), signal.SIGKILL)
    hit = time.time()
    reached = estimate_step(run, hit)
    recovered = first_step_after(training, run, hit)
    problem = wait_for_end(training)
    return make_round("worker kill", training, reached, recovered - hit, problem)


def end_and_resume(kind: str, training: Training, folder: Path, run: Path, rng: random.Random) -> Round:
    """End the command, optionally corrupt the newest checkpoint, and resume the run with a new command."""
    number = signal.SIGTERM if kind == "terminate" else signal.SIGKILL
    training.process.send_signal(number)
    hit = time.time()
    expected = 143 if kind == "terminate" else -signal.SIGKILL
    exit_code = training.wait(60)
    problem = "" if exit_code == expected else f"exit code {exit_code} instead of {expected}; "
    if not training.wait_until_all_gone(90):
        problem += "processes remained; "
    reached = newest_step(run) if kind == "terminate" else estimate_step(run, hit)
    if kind == "corruption":
        corrupt(run, rng)
    resumed = time.time()
    training = Training(folder, "--resume", "chaos")
    recovered = first_step_after(training, run, resumed)
    problem += wait_for_end(training)
    return make_round(kind, training, reached, recovered - resumed, problem)


def drain_node(folder: Path, run: Path, flags: list[object], hit_after: int) -> Round:
    """Train on a cluster of two nodes; drain and then remove one of them while a third one joins."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        _, leaving = (cluster.add_node(num_cpus=1) for _ in range(2))
        training = Training(folder, *flags, "--address", cluster.address, "--max-failures", 0)
        wait_for_step(training, run, hit_after)
        drain(cluster.address, leaving.node_id, "chaos")
        hit = time.time()
        cluster.add_node(num_cpus=1)
        time.sleep(DRAIN_SECONDS)
        reached = estimate_step(run, time.time())
        cluster.remove_node(leaving, allow_graceful=False)
        recovered = first_step_after(training, run, hit)
        problem = wait_for_end(training)
    finally:
        cluster.shutdown()
    return make_round("node drain", training, reached, recovered - hit, problem)


def wait_for_end(training: Training) -> str:
    """Wait for a run to end; describe its failure, empty if it succeeded."""
    exit_code = training.wait()
    training.wait_until_all_gone(30)
    return f"the run ended with {exit_code}: {training.log.read_text()[-500:]}" if exit_code else ""


def make_round(kind: str, training: Training, reached: int, recovery_seconds: float, problem: str) -> Round:
    """The round of a run that had reached the step `reached` when it was disturbed."""
    found = re.search(r"Resumed at step (\d+)", training.log.read_text())
    resumed = int(found[1]) if found else 0
    return Round(kind, resumed, max(0, reached - resumed), recovery_seconds, False, problem)


def train_undisturbed(folder: Path, flags: list[object]) -> tuple[bytes, int]:
    """Train once without a disturbance; return the bytes of model.safetensors, and the number of steps."""
    folder.mkdir()
    if Training(folder, *flags, "--run-name", "chaos").wait():
        raise SystemExit("the undisturbed run failed: " + next(folder.glob("*.log")).read_text()[-2000:])
    run = folder / "runs" / "chaos"
    return (run / "model.safetensors").read_bytes(), newest_step(run)


def run_rounds(kinds: Sequence[str], count: int, seed: int, folder: Path, flags: list[object]) -> Iterator[Round]:
    """Train once undisturbed, then with one disturbance per round; print a line for each."""
    rng = random.Random(seed)
    reference, total_steps = train_undisturbed(folder / "undisturbed", flags)
    print(f"{count} rounds, seed {seed}, {total_steps} steps\n")
    headings = f"{'from step':>9} {'steps lost':>10} {'first step s':>12}"
    print(f"{'round':>5}  {'disturbance':<12} {headings}  weights", flush=True)
    for number in range(1, count + 1):
        place = folder / str(number)
        place.mkdir()
        result = disturb(kinds[(number - 1) % len(kinds)], place, flags, total_steps, rng)
        model = place / "runs/chaos/model.safetensors"
        result.same = model.exists() and model.read_bytes() == reference
        verdict = f"{'the same' if result.same else 'DIFFERENT'} {result.problem}"
        numbers = f"{result.step:>9} {result.lost_steps:>10} {result.recovery_seconds:>12.1f}"
        print(f"{number:>5}  {result.kind:<12} {numbers}  {verdict}", flush=True)
        shutil.rmtree(place)
        yield result
