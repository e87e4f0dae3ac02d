"""One round on a cluster: train, disturb the run, repair the cluster, resume the run if it ended, and judge.

A round passes if the command ends within the limit; if it ends before the run is finished, it must say why, and the
same command must then finish the run. The model must have the bytes of an undisturbed run, no process of the run may
remain on a host, and the run's storage must hold the same files as an undisturbed run's, so neither locks nor temporary
files. (A port or a lock that a process holds ends with the process.) The workers must have resumed from the newest
checkpoint that was complete when the fault came, or a newer one; from the one before if it was damaged.
"""

import random
import re
import time
from dataclasses import dataclass, field

from benchmarks.faults.cluster.kinds import Plan
from benchmarks.faults.cluster.phases import saves_seen, sleep, wait_for_phase
from benchmarks.faults.cluster.ray_cluster import HostTraining, RayCluster
from benchmarks.faults.cluster.scene import (
    Scene,
    Undo,
    complete_steps,
    first_step_at,
    reached_step,
)
from benchmarks.faults.cluster.stage import Reference, Stage
from vgg_ddp.run.files import MODEL_FILE

SECONDS_TO_CLEAN = 60
SECONDS_BETWEEN_REPAIRS = 3.0
# How long a run may count as in use after its command was killed, and what the next command then says.
SECONDS_TO_RELEASE, IN_USE = 120, "is already running"
# The last two are Ray's, which ends the process of the driver when the head dies.
REASONS = ("error: ", "--resume ", "nothing to resume", "Failed to connect to GCS", "the local Raylet is dead")
# Lines at the end of the output that should contain the reason.
LAST_LINES = 15


@dataclass
class ClusterRound:
    """One disturbed run.

    Attributes:
        seconds: how long the fault lasted, if it ended by itself.
        exit_codes: of the command that was disturbed, and of the one that resumed the run.
        lost_steps: steps that were repeated, as far as the run had written its progress.
        recovery_seconds: to the first new step, from the fault or from the command that resumes; None if the workers
            did not restart.
    """

    seed: int
    faults: str
    phase: str
    storage: str
    seconds: float
    notes: list[str] = field(default_factory=list)
    exit_codes: list[int] = field(default_factory=list)
    lost_steps: int = 0
    recovery_seconds: float | None = None
    total_seconds: float = 0.0
    same: bool = False
    problems: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return self.same and not self.problems


def play(stage: Stage, plan: Plan, reference: Reference) -> ClusterRound:
    """Train once, disturbed as planned."""
    result = ClusterRound(plan.seed, str(plan), plan.phase, stage.root.filesystem.type_name, plan.seconds)
    training = stage.train()
    rng = random.Random(plan.seed)
    scene = Scene(stage.cluster, training, stage.run, rng, stage.proxy, plan.seconds, result.notes)
    with saves_seen(scene) as saves_now:
        wait_for_phase(scene, plan, reference, saves_now)
    hit, steps = time.time(), complete_steps(stage.run)
    reached, log_before = reached_step(stage.run), len(training.output())
    ended = _disturb(scene, plan, stage.limit_seconds)
    result.exit_codes.append(training.process.returncode if ended else -1)
    if not ended:
        result.problems.append(f"still running after {stage.limit_seconds:.0f} s")
        training.end()
    elif training.process.returncode and not plan.expects_no_reason:
        result.problems += _missing_reason(training)
    output = training.output()[log_before:]
    resumed_at = hit
    if training.process.returncode or not ended:
        resumed_at, output = _resume(stage, result, output)
    _judge(stage, result, reference)
    _measure_loss(result, plan, output, steps, reached)
    if result.exit_codes[1:] or "Resumed at step" in output:
        result.recovery_seconds = max(0.0, first_step_at(stage.run) - resumed_at)
    return result


def _disturb(scene: Scene, plan: Plan, limit_seconds: float) -> bool:
    """Inject the faults, end them in time, replace dead nodes; whether the command ended within the limit."""
    deadline = time.monotonic() + limit_seconds
    pending: list[tuple[float, Undo]] = []
    try:
        for kind in plan.kinds:
            if pending:
                sleep(scene, plan.gap_seconds)
            undo = kind.inject(scene)
            pending.append((time.monotonic() + plan.seconds, undo))
        repaired = time.monotonic()
        while time.monotonic() < deadline and (scene.training.is_running or pending):
            if pending and (not scene.training.is_running or pending[0][0] <= time.monotonic()):
                pending.pop(0)[1]()
            elif not pending and time.monotonic() - repaired > SECONDS_BETWEEN_REPAIRS:
                _replace_dead_nodes(scene.cluster)
                repaired = time.monotonic()
            time.sleep(0.05)
    finally:
        for _, undo in pending:
            undo()
    return not scene.training.is_running


def _replace_dead_nodes(cluster: RayCluster) -> None:
    try:
        if cluster.has_head():
            cluster.replace_dead_nodes()
    except RuntimeError:
        # The head may have died in the meantime. If not, the node is replaced the next time.
        return


def _missing_reason(training: HostTraining) -> list[str]:
    """A problem if the output of a command does not end with a reason."""
    lines = training.output().splitlines()[-LAST_LINES:]
    if any(reason in line for line in lines for reason in REASONS):
        return []
    return [f"the command ended with {training.process.returncode} without saying why"]


def _resume(stage: Stage, result: ClusterRound, output: str) -> tuple[float, str]:
    """Repair the cluster and train to the end; return when the command started, and both commands' output."""
    if remaining := stage.cluster.wait_until_clean(SECONDS_TO_CLEAN):
        result.problems.append(f"processes remained: {remaining}")
    stage.cluster.restore()
    deadline = time.monotonic() + SECONDS_TO_RELEASE
    while True:
        resumed_at = time.time()
        training = stage.train()
        scene = Scene(stage.cluster, training, stage.run, random.Random(), stage.proxy, 0)
        sleep(scene, stage.limit_seconds)
        # A killed command's lease on a run on S3 still has to expire.
        if IN_USE not in training.output() or time.monotonic() > deadline:
            break
        time.sleep(SECONDS_BETWEEN_REPAIRS)
    if training.is_running:
        training.end()
        result.problems.append("the resumed run did not end")
    elif training.process.returncode:
        result.problems.append(f"the resumed run ended with {training.process.returncode}")
    result.exit_codes.append(training.process.returncode)
    return resumed_at, output + training.output()


def _judge(stage: Stage, result: ClusterRound, reference: Reference) -> None:
    """Compare what the run left with the undisturbed run."""
    result.same = stage.run.exists(MODEL_FILE) and stage.run.read(MODEL_FILE) == reference.model
    if remaining := stage.cluster.wait_until_clean(SECONDS_TO_CLEAN):
        result.problems.append(f"processes remained: {remaining}")
    files = stage.files()
    if extra := files - reference.files:
        result.problems.append(f"files remained: {', '.join(sorted(extra))}")
    if missing := reference.files - files:
        result.problems.append(f"files are missing: {', '.join(sorted(missing))}")


def _measure_loss(result: ClusterRound, plan: Plan, output: str, steps: list[int], reached: int) -> None:
    """The steps that were repeated, and whether they are more than those since the newest checkpoint."""
    if found := re.search(r"Resumed at step (\d+)", output):
        resumed = int(found[1])
    elif len(result.exit_codes) > 1 and "already finished" not in output:
        resumed = 0
    else:
        return
    result.lost_steps = max(0, reached - resumed)
    is_damaged = any(name in str(plan) for name in ("damaged", "truncated", "old listings"))
    kept = steps[:-1] if is_damaged else steps
    if kept and resumed < kept[-1]:
        result.problems.append(f"resumed at step {resumed}, although step {kept[-1]} was complete")
