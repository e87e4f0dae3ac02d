"""Disturb runs at random moments, and compare the weights they end with to those of a run that nothing disturbed.

    python benchmarks/chaos.py --rounds 20 --seed 0

Each round trains the bundled sample (or --data) under Ray Train and does one thing to it at a random step:

    worker kill     kill -9 of one worker; Ray Train restarts all from the newest checkpoint
    driver kill     kill -9 of the command; what it started must be gone; the run is resumed
    terminate       SIGTERM to the command; exit code 143 with a checkpoint; the run is resumed
    node drain      a node of a cluster is drained and then removed, as a spot instance is; another one joins
    corruption      as driver kill, and a random byte of the newest checkpoint is changed before the run is resumed

Printed for each round: the step of the checkpoint that the run went on from, the steps done again because of that
(estimated from the time since that checkpoint), and the seconds from the kill, or from the command that resumes, to the
first new step. Exit code 1 if a run ends with other bytes in model.safetensors, or not at all.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from record import write_json

ROOT = Path(__file__).resolve().parent.parent
MAIN = ROOT / "ray_app" / "main.py"
MARK = "VGG_CHAOS_MARK"
KINDS = ("worker kill", "driver kill", "terminate", "node drain", "corruption")
DRAIN_SECONDS = 10
LIMIT_SECONDS = 600


@dataclass
class Round:
    """One disturbed run.

    Attributes:
        step: of the checkpoint that the run went on from.
        lost_steps: estimate of those that were done again.
        recovery_seconds: from the disturbance, or from the command that resumes, to the first new step.
        same: whether the final weights equal the undisturbed run's to the byte.
    """

    kind: str
    step: int
    lost_steps: int
    recovery_seconds: float
    same: bool
    problem: str = ""


class Training:
    """The command in the background, its processes marked by their environment."""

    def __init__(self, folder: Path, *flags: object) -> None:
        self.mark = uuid.uuid4().hex
        self.log = folder / f"{self.mark}.log"
        self.started = time.monotonic()
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(MAIN), *map(str, flags)],
                cwd=folder,
                env=os.environ | {MARK: self.mark},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def processes(self) -> dict[int, str]:
        """Process ids and command lines of all that this command started and that still runs."""
        found = {}
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and f"{MARK}={self.mark}\0".encode() in (entry / "environ").read_bytes():
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
        return {pid: command for pid, command in found.items() if command}

    def wait(self, limit_seconds: float = LIMIT_SECONDS) -> int:
        """Exit code of the command; what outlives its time is killed."""
        try:
            return self.process.wait(limit_seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return -1

    def wait_until_all_gone(self, limit_seconds: float) -> bool:
        """Whether all processes end in time; those that do not are killed."""
        deadline = time.monotonic() + limit_seconds
        while self.processes() and time.monotonic() < deadline:
            time.sleep(0.1)
        left = self.processes()
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        return not left


def newest_step(run: Path) -> int:
    """Step of the newest whole checkpoint, 0 if there is none."""
    return max(map(step_of, run.glob("checkpoint_*/manifest.json")), default=0)


def wait_for_step(training: Training, run: Path, step: int) -> None:
    """Wait until a checkpoint of at least this step is there, or the command has ended."""
    while newest_step(run) < step and training.process.poll() is None:
        time.sleep(0.05)


def first_step_after(training: Training, run: Path, moment: float) -> float:
    """When the first step of the workers that started after this moment was done, in seconds since 1970."""
    startup = run / "startup.json"
    while training.process.poll() is None or startup.stat().st_mtime > moment:
        if startup.exists():
            first_step: float = json.loads(startup.read_text())["first step"]
            if first_step > moment:
                return first_step
        time.sleep(0.05)
    return float("nan")


def estimate_step(run: Path, moment: float) -> int:
    """Step that a run was at, from its newest checkpoint and the pace between the last two."""
    manifests = sorted(run.glob("checkpoint_*/manifest.json"))[-2:]
    if len(manifests) < 2:
        return newest_step(run)
    (first, last), (before, after) = ([path.stat().st_mtime for path in manifests], map(step_of, manifests))
    return after + max(0, round((moment - last) * (after - before) / (last - first)))


def step_of(manifest: Path) -> int:
    return int(manifest.parent.name.split("_")[1])


def change_a_byte(run: Path, dice: random.Random) -> None:
    """Change one byte of the newest checkpoint."""
    state = max(run.glob("checkpoint_*/state.pt"))
    with state.open("r+b") as file:
        position = dice.randrange(state.stat().st_size)
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 255]))


def disturb(kind: str, folder: Path, flags: list[object], total_steps: int, dice: random.Random) -> Round:
    """Train once, with one disturbance."""
    run = folder / "runs" / "chaos"
    flags = [*flags, "--run-name", "chaos"]
    hit_after = dice.randrange(1, max(2, total_steps * 3 // 4))
    if kind == "node drain":
        return drain_a_node(folder, run, flags, hit_after)
    training = Training(folder, *flags)
    wait_for_step(training, run, hit_after)
    time.sleep(dice.random())
    if kind == "worker kill":
        return kill_a_worker(training, run, dice)
    return end_and_resume(kind, training, folder, run, dice)


def kill_a_worker(training: Training, run: Path, dice: random.Random) -> Round:
    workers = [pid for pid, command in training.processes().items() if command.startswith("ray::RayTrainWorker")]
    os.kill(dice.choice(workers), signal.SIGKILL)
    hit = time.time()
    reached = estimate_step(run, hit)
    recovered = first_step_after(training, run, hit)
    problem = conclude(training)
    return make_round("worker kill", training, reached, recovered - hit, problem)


def end_and_resume(kind: str, training: Training, folder: Path, run: Path, dice: random.Random) -> Round:
    number = signal.SIGTERM if kind == "terminate" else signal.SIGKILL
    training.process.send_signal(number)
    hit = time.time()
    expected = 143 if kind == "terminate" else -signal.SIGKILL
    exit_code = training.wait(60)
    problem = "" if exit_code == expected else f"exit code {exit_code} instead of {expected}; "
    if not training.wait_until_all_gone(90):
        problem += "processes left; "
    reached = newest_step(run) if kind == "terminate" else estimate_step(run, hit)
    if kind == "corruption":
        change_a_byte(run, dice)
    resumed = time.time()
    training = Training(folder, "--resume", "chaos")
    recovered = first_step_after(training, run, resumed)
    problem += conclude(training)
    return make_round(kind, training, reached, recovered - resumed, problem)


def drain_a_node(folder: Path, run: Path, flags: list[object], hit_after: int) -> Round:
    """Train on a cluster of two nodes, of which one is drained and then removed while a third one joins."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        _, leaving = (cluster.add_node(num_cpus=1) for _ in range(2))
        training = Training(folder, *flags, "--address", cluster.address, "--max-failures", 0)
        wait_for_step(training, run, hit_after)
        ray = Path(sys.executable).with_name("ray")
        what = ["--address", cluster.address, "--node-id", leaving.node_id, "--reason-message", "chaos"]
        how = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--deadline-remaining-seconds", str(DRAIN_SECONDS)]
        subprocess.run([ray, "drain-node", *what, *how], check=True, capture_output=True)
        hit = time.time()
        cluster.add_node(num_cpus=1)
        time.sleep(DRAIN_SECONDS)
        reached = estimate_step(run, time.time())
        cluster.remove_node(leaving, allow_graceful=False)
        recovered = first_step_after(training, run, hit)
        problem = conclude(training)
    finally:
        cluster.shutdown()
    return make_round("node drain", training, reached, recovered - hit, problem)


def make_round(kind: str, training: Training, reached: int, recovery_seconds: float, problem: str) -> Round:
    """The round of a run that had reached a step when it was disturbed."""
    found = re.search(r"Resumed at step (\d+)", training.log.read_text())
    resumed = int(found[1]) if found else 0
    return Round(kind, resumed, max(0, reached - resumed), recovery_seconds, False, problem)


def conclude(training: Training) -> str:
    """Wait for the end of a run; what is wrong with it."""
    exit_code = training.wait()
    training.wait_until_all_gone(30)
    return f"the run ended with {exit_code}: {training.log.read_text()[-500:]}" if exit_code else ""


def run_rounds(options: argparse.Namespace, folder: Path, flags: list[object]) -> list[Round]:
    """Train once undisturbed, then round by round; print a line for each."""
    dice = random.Random(options.seed)
    calm = folder / "calm"
    calm.mkdir()
    if Training(calm, *flags, "--run-name", "chaos").wait():
        raise SystemExit("the undisturbed run failed: " + next(calm.glob("*.log")).read_text()[-2000:])
    reference = (calm / "runs/chaos/model.safetensors").read_bytes()
    total_steps = newest_step(calm / "runs" / "chaos")
    print(f"{options.rounds} rounds, seed {options.seed}, {total_steps} steps, {options.num_workers} workers\n")
    heads = f"{'from step':>9} {'steps lost':>10} {'first step s':>12}"
    print(f"{'round':>5}  {'disturbance':<12} {heads}  weights", flush=True)
    rounds: list[Round] = []
    for number in range(1, options.rounds + 1):
        place = folder / str(number)
        place.mkdir()
        result = disturb(options.kinds[(number - 1) % len(options.kinds)], place, flags, total_steps, dice)
        model = place / "runs/chaos/model.safetensors"
        result.same = model.exists() and model.read_bytes() == reference
        rounds.append(result)
        verdict = f"{'the same' if result.same else 'DIFFERENT'} {result.problem}"
        numbers = f"{result.step:>9} {result.lost_steps:>10} {result.recovery_seconds:>12.1f}"
        print(f"{number:>5}  {result.kind:<12} {numbers}  {verdict}", flush=True)
        shutil.rmtree(place)
    return rounds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-workers", type=int, default=2)
    parser.add_argument("--data", default="sample")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=120)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    data = options.data if options.data == "sample" else os.path.abspath(options.data)
    flags: list[object] = ["--num-workers", options.num_workers, "--data", data, "--epochs", options.epochs]
    flags += ["--recipe", "classic", "--batch-size", options.batch_size]
    flags += ["--precision", "fp32", "--checkpoint-every-seconds", 2]
    with tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as name:
        # A home of its own: the token of another cluster in the real one would keep the nodes apart.
        os.environ.update(HOME=name, RAY_TMPDIR=name, RAY_USAGE_STATS_ENABLED="0")
        rounds = run_rounds(options, Path(name), flags)
    bad = [result for result in rounds if not result.same or result.problem]
    print(f"\n{len(rounds) - len(bad)} of {len(rounds)} rounds without a difference")
    settings = {"rounds": options.rounds, "seed": options.seed, "flags": [str(flag) for flag in flags]}
    write_json(options.json, {"settings": settings, "rounds": [vars(result) for result in rounds]})
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
