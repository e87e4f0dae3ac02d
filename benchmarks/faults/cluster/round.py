"""One round on a cluster: train, disturb the run, repair the cluster, resume the run if it ended, and judge.

A round passes if the command ends within the limit; if it ends before the run is finished, it must say why, and the
same command must then finish the run. The model must have the bytes of an undisturbed run, no process of the run may
remain on a host, and the run's storage must hold the same files as an undisturbed run's, so neither locks nor temporary
files. (A port or a lock that a process holds ends with the process.) The workers must have resumed from the newest
checkpoint that was complete when the fault came, or a newer one; from the one before if it was damaged. A round whose
faults did not all hit something tells nothing, unless it fails.
"""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

from benchmarks.faults.cluster.kinds import Kind, Plan
from benchmarks.faults.cluster.phases import saves_seen, sleep, wait_for_phase
from benchmarks.faults.cluster.ray_cluster import RayCluster
from benchmarks.faults.cluster.scene import NotInjected, Scene, complete_steps, first_step_at, reached_step
from benchmarks.faults.cluster.stage import Reference, Stage
from benchmarks.faults.cluster.verdict import problems_of_end, problems_of_steps, resumed_steps
from vgg_ddp.run.files import MODEL_FILE
from vgg_ddp.run.storage import is_checkpoint

SECONDS_TO_CLEAN = 60
SECONDS_BETWEEN_REPAIRS = 3.0
# How long a run may count as in use after its command was killed, and what the next command then says.
SECONDS_TO_RELEASE, IN_USE = 120, "is already running"


@dataclass
class ClusterRound:
    """One disturbed run.

    Attributes:
        seconds: how long the fault lasted, if it ended by itself.
        notes: what the faults chose.
        missed: the faults that hit nothing, and why.
        exit_codes: of the command that was disturbed, and of the one that resumed the run.
        lost_steps: steps that were repeated, as far as the run had written its progress.
        recovery_seconds: to the first new step, from the fault or from the command that resumes; None if there was
            none.
        same: whether the model has the bytes of the undisturbed run's; None if the round was not played to its end.
    """

    seed: int
    faults: str
    phase: str
    storage: str
    seconds: float
    notes: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    exit_codes: list[int] = field(default_factory=list)
    lost_steps: int = 0
    recovery_seconds: float | None = None
    total_seconds: float = 0.0
    same: bool | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        if not self.same or self.problems:
            return "FAILED"
        return "not hit" if self.missed else "passed"

    @property
    def passed(self) -> bool:
        return self.verdict == "passed"


@dataclass(frozen=True)
class Before:
    """What a run had done when it was disturbed.

    Attributes:
        moment: in seconds since 1970.
        steps: those of its complete checkpoints.
        reached: its step, as far as it had written its progress.
        output: length of what the command had printed.
    """

    moment: float
    steps: list[int]
    reached: int
    output: int


def play(stage: Stage, plan: Plan, reference: Reference) -> ClusterRound:
    """Train once, disturbed as planned."""
    result = ClusterRound(plan.seed, str(plan), plan.phase, stage.root.filesystem.type_name, plan.seconds)
    training = stage.train()
    scene = replace(stage.scene(training), notes=result.notes)
    with saves_seen(scene) as saves_now:
        is_reached = wait_for_phase(scene, plan, reference, saves_now)
    if is_reached:
        before = _disturb(replace(scene, deadline=time.monotonic() + stage.limit_seconds), plan, result)
    else:
        before = _look(scene)
        result.missed += [f"{kind.name}: its phase did not come" for kind in plan.kinds]
    if training.is_running:
        result.problems.append(f"still running after {stage.limit_seconds:.0f} s")
        training.end()
        result.exit_codes.append(-1)
    else:
        result.exit_codes.append(training.process.returncode)
        is_undisturbed = len(result.missed) == len(plan.kinds)
        result.problems += problems_of_end(plan, training.process.returncode, training.output(), is_undisturbed)
    outputs, resumed_at = [training.output()[before.output :]], before.moment
    if result.exit_codes[0]:
        resumed_at, output = _resume(stage, plan, result)
        outputs.append(output)
    _judge(stage, plan, result, reference)
    if resumed := resumed_steps(outputs):
        result.lost_steps = max(0, before.reached - min(resumed))
        result.problems += problems_of_steps(plan, resumed, before.steps, before.reached)
    first_step = first_step_at(stage.run)
    if (len(outputs) > 1 or resumed) and first_step > resumed_at:
        result.recovery_seconds = first_step - resumed_at
    return result


def _look(scene: Scene) -> Before:
    return Before(time.time(), complete_steps(scene.run), reached_step(scene.run), len(scene.training.output()))


def _disturb(scene: Scene, plan: Plan, result: ClusterRound) -> Before:
    """Inject the faults, end them in time, and replace dead nodes, until the command ends or the deadline comes."""
    found: Before | None = None
    pending: deque[tuple[float, Kind, ExitStack]] = deque()
    # Ends all faults, even if one of them cannot be ended.
    with ExitStack() as faults:
        for kind in plan.kinds:
            if found:
                sleep(scene, plan.gap_seconds)
            faults.enter_context(_misses_noted(kind, result))
            with _misses_noted(kind, result), ExitStack() as undo:
                if not scene.training.is_running:
                    raise NotInjected("the command had ended")
                kind.inject(replace(scene, rng=plan.random(kind), undo=undo))
                # From here on, it is not undone at once.
                pending.append((time.monotonic() + plan.seconds, kind, faults.enter_context(undo.pop_all())))
            found = found or _look(scene)
        repaired = time.monotonic()
        while time.monotonic() < scene.deadline and (scene.training.is_running or pending):
            if pending and (not scene.training.is_running or pending[0][0] <= time.monotonic()):
                _, kind, undo = pending.popleft()
                with _misses_noted(kind, result):
                    undo.close()
            elif not pending and time.monotonic() - repaired > SECONDS_BETWEEN_REPAIRS:
                _replace_dead_nodes(scene.cluster)
                repaired = time.monotonic()
            time.sleep(0.05)
    assert found
    return found


@contextmanager
def _misses_noted(kind: Kind, result: ClusterRound) -> Iterator[None]:
    try:
        yield
    except NotInjected as error:
        result.missed.append(f"{kind.name}: {error}")


def _replace_dead_nodes(cluster: RayCluster) -> None:
    try:
        if cluster.has_head():
            cluster.replace_dead_nodes()
    except RuntimeError:
        # The head may have died in the meantime. If not, the node is replaced the next time.
        return


def _resume(stage: Stage, plan: Plan, result: ClusterRound) -> tuple[float, str]:
    """Repair the cluster and train to the end; return when the command started, and its output."""
    if remaining := stage.cluster.wait_until_clean(SECONDS_TO_CLEAN, may_idle=plan.with_clocks):
        result.problems.append(f"processes remained: {remaining}")
    stage.cluster.restore()
    deadline = time.monotonic() + SECONDS_TO_RELEASE
    while True:
        resumed_at = time.time()
        training = stage.train()
        sleep(stage.scene(training), stage.limit_seconds)
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
    return resumed_at, training.output()


def _judge(stage: Stage, plan: Plan, result: ClusterRound, reference: Reference) -> None:
    """Compare what the run left with the undisturbed run."""
    result.same = stage.run.exists(MODEL_FILE) and stage.run.read(MODEL_FILE) == reference.model
    if remaining := stage.cluster.wait_until_clean(SECONDS_TO_CLEAN, may_idle=plan.with_clocks):
        result.problems.append(f"processes remained: {remaining}")
    files = stage.files()
    extra = files - reference.files
    if plan.has_old_listings:
        # Checkpoints that were missing in the listings are not found when it is time to delete them.
        extra = frozenset(name for name in extra if not is_checkpoint(name))
    if extra:
        result.problems.append(f"files remained: {', '.join(sorted(extra))}")
    if missing := reference.files - files:
        result.problems.append(f"files are missing: {', '.join(sorted(missing))}")
