"""Disturb runs at random moments, and compare the weights they end with to those of a run that nothing disturbed.

    python benchmarks/chaos.py --rounds 20 --seed 0

Each round trains the bundled sample (or --data) under Ray Train and does one thing to it at a random step:

    worker kill     kill -9 of one worker; Ray Train restarts all from the newest checkpoint
    driver kill     kill -9 of the command; what it started must be gone; the run is resumed
    terminate       SIGTERM to the command; exit code 143 with a checkpoint; the run is resumed
    interrupt       SIGINT to the command; exit code 130; the run is resumed
    corruption      as driver kill, and a random byte of the newest checkpoint is changed before the run is resumed

Exit code 1 if a run ends with other bytes in model.safetensors, or not at all.
"""

import argparse
import json
import os
import random
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
KINDS = ("worker kill", "driver kill", "terminate", "interrupt", "corruption")
LIMIT_SECONDS = 600


@dataclass
class Round:
    """One disturbed run.

    Attributes:
        step: of the newest checkpoint when the run was disturbed.
        recovery_seconds: from the disturbance, or from the command that resumes, to the next checkpoint or epoch.
        same: whether the final weights equal the undisturbed run's to the byte.
    """

    kind: str
    step: int
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
    steps = [int(path.parent.name.split("_")[1]) for path in run.glob("checkpoint_*/manifest.json")]
    return max(steps, default=0)


def wait_for_step(training: Training, run: Path, step: int) -> float:
    """Moment when a checkpoint of at least this step is there, or the command has ended."""
    while newest_step(run) < step and training.process.poll() is None:
        time.sleep(0.05)
    return time.monotonic()


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
    training = Training(folder, *flags, "--run-name", "chaos")
    wait_for_step(training, run, dice.randrange(1, max(2, total_steps * 3 // 4)))
    time.sleep(dice.random())
    step = newest_step(run)
    problem = ""
    if kind == "worker kill":
        workers = [pid for pid, command in training.processes().items() if command.startswith("ray::RayTrainWorker")]
        os.kill(dice.choice(workers), signal.SIGKILL)
        hit = time.monotonic()
        recovered = wait_for_step(training, run, step + 1)
        exit_code = training.wait()
    else:
        number = {"terminate": signal.SIGTERM, "interrupt": signal.SIGINT}.get(kind, signal.SIGKILL)
        training.process.send_signal(number)
        expected = -signal.SIGKILL if number == signal.SIGKILL else 128 + number
        exit_code = training.wait(60)
        if exit_code != expected:
            problem = f"exit code {exit_code} instead of {expected}; "
        if not training.wait_until_all_gone(90):
            problem += "processes left; "
        if kind == "corruption":
            change_a_byte(run, dice)
        step = newest_step(run)
        hit = time.monotonic()
        training = Training(folder, "--resume", "chaos")
        recovered = wait_for_step(training, run, step + 1)
        exit_code = training.wait()
    if exit_code:
        problem += f"the run ended with {exit_code}: {training.log.read_text()[-500:]}"
    training.wait_until_all_gone(30)
    return Round(kind, step, recovered - hit, False, problem)


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
    dice = random.Random(options.seed)
    data = options.data if options.data == "sample" else os.path.abspath(options.data)
    flags: list[object] = ["--num-workers", options.num_workers, "--data", data, "--epochs", options.epochs]
    flags += ["--batch-size", options.batch_size, "--precision", "fp32", "--checkpoint-every-seconds", 2]
    rounds: list[Round] = []
    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        calm = Path(name) / "calm"
        calm.mkdir()
        if Training(calm, *flags, "--run-name", "chaos").wait():
            raise SystemExit("the undisturbed run failed: " + next(calm.glob("*.log")).read_text()[-2000:])
        reference = (calm / "runs/chaos/model.safetensors").read_bytes()
        total_steps = newest_step(calm / "runs" / "chaos")
        print(f"{options.rounds} rounds, seed {options.seed}, {total_steps} steps, {options.num_workers} workers\n")
        print(f"{'round':>5}  {'disturbance':<12} {'at step':>7} {'recovery s':>10}  weights", flush=True)
        for number in range(1, options.rounds + 1):
            folder = Path(name) / str(number)
            folder.mkdir()
            kind = options.kinds[(number - 1) % len(options.kinds)]
            result = disturb(kind, folder, flags, total_steps, dice)
            model = folder / "runs/chaos/model.safetensors"
            result.same = model.exists() and model.read_bytes() == reference
            rounds.append(result)
            verdict = f"{'the same' if result.same else 'DIFFERENT'} {result.problem}"
            print(f"{number:>5}  {kind:<12} {result.step:>7} {result.recovery_seconds:>10.1f}  {verdict}", flush=True)
    bad = [result for result in rounds if not result.same or result.problem]
    print(f"\n{len(rounds) - len(bad)} of {len(rounds)} rounds without a difference")
    settings = {"rounds": options.rounds, "seed": options.seed, "flags": json.loads(json.dumps(flags, default=str))}
    write_json(options.json, {"settings": settings, "rounds": [vars(result) for result in rounds]})
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
