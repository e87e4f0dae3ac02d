"""The kinds of faults of a cluster, and the choice of those of a round."""

import random
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.faults.cluster import clock, links, processes, storages
from benchmarks.faults.cluster.s3_proxy import BROKEN, CUT, THROTTLED
from benchmarks.faults.cluster.scene import Scene

PHASES = ("start", "training", "evaluation", "save", "end")
# Shorter and longer than the timeouts of the run and of Ray; on S3, also longer than a run's lease of 30 s.
BRIEF_SECONDS, LONG_SECONDS, LONG_SECONDS_ON_S3 = 4.0, 25.0, 40.0
# These kill the driver before they change its newest checkpoint.
DAMAGED = ("damaged checkpoint", "truncated checkpoint")
# After these, the command may have been killed with SIGKILL, and cannot say why.
DRIVER_DIES = ("kill driver", *DAMAGED, "freeze driver")
# The exit codes of the command after signals to it. The first two save a checkpoint.
EXIT_CODES = {"SIGTERM to driver": 143, "SIGHUP to driver": 129, "Ctrl-C to driver": 130}
SAVES = ("SIGTERM to driver", "SIGHUP to driver")
# Of several faults, these come last: after them, the command ends, and nothing is left for the others to hit.
ENDS_COMMAND = (*EXIT_CODES, "kill driver", *DAMAGED, "kill controller")
OLD_LISTINGS = "S3 returns old listings"
SIGNALS = {
    "kill": signal.SIGKILL,
    "SIGTERM to": signal.SIGTERM,
    "SIGHUP to": signal.SIGHUP,
    "Ctrl-C to": signal.SIGINT,
}


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    Attributes:
        inject: disturbs a run, and puts what ends the fault on `scene.undo`; raises NotInjected if it hits nothing.
        on_s3: whether the run has to be stored on S3.
        with_clocks: whether the hosts need clocks that can be set.
        needs_checkpoint: whether there is nothing to hit during the start.
    """

    name: str
    inject: Callable[[Scene], None]
    on_s3: bool = False
    with_clocks: bool = False
    needs_checkpoint: bool = False


def _all() -> list[Kind]:
    kinds = [
        Kind(f"{verb} {target}", processes.send(target, number))
        for verb, number in SIGNALS.items()
        for target in processes.TARGETS
    ]
    kinds += [Kind(f"freeze {target}", processes.freeze(target)) for target in processes.TARGETS]
    kinds += [
        Kind("partition", links.drop(incoming=True, outgoing=True)),
        Kind("partition, incoming", links.drop(incoming=True, outgoing=False)),
        Kind("partition, outgoing", links.drop(incoming=False, outgoing=True)),
        Kind("30% packet loss", links.drop(incoming=True, outgoing=True, percent=links.LOST_PERCENT)),
        Kind("2 s latency", links.delay),
        Kind("1 Mbit/s", links.slow_down),
        Kind("clock, an hour forward", clock.step(clock.STEP_SECONDS), with_clocks=True),
        Kind("clock, an hour back", clock.step(-clock.STEP_SECONDS), with_clocks=True),
        Kind("full disk", storages.fill_disk),
        Kind("read-only disk", storages.make_read_only),
        Kind("S3 throttles", storages.fail_requests(THROTTLED), on_s3=True),
        Kind("S3 returns 500", storages.fail_requests(BROKEN), on_s3=True),
        Kind("S3 cuts uploads", storages.fail_requests(CUT, only_writes=True), on_s3=True),
        Kind(OLD_LISTINGS, storages.answer_old_listings, on_s3=True),
        Kind("damaged checkpoint", storages.damage_checkpoint(truncate=False), needs_checkpoint=True),
        Kind("truncated checkpoint", storages.damage_checkpoint(truncate=True), needs_checkpoint=True),
    ]
    return kinds


KINDS = {kind.name: kind for kind in _all()}


@dataclass(frozen=True)
class Plan:
    """What a round does. The same seed, kinds, and phases give the same plan.

    Attributes:
        seconds: how long faults last that end by themselves.
        moment: from 0 to 1, when in the phase the first fault comes.
        gap_seconds: from one fault to the next.
    """

    seed: int
    kinds: tuple[Kind, ...]
    phase: str
    seconds: float
    moment: float
    gap_seconds: float

    def __str__(self) -> str:
        return " + ".join(kind.name for kind in self.kinds)

    @property
    def on_s3(self) -> bool:
        return any(kind.on_s3 for kind in self.kinds)

    @property
    def with_clocks(self) -> bool:
        return any(kind.with_clocks for kind in self.kinds)

    @property
    def has_old_listings(self) -> bool:
        return any(kind.name == OLD_LISTINGS for kind in self.kinds)

    @property
    def may_lose_checkpoint(self) -> bool:
        """Whether the newest checkpoint may be damaged, or not be found."""
        return self.has_old_listings or any(kind.name in DAMAGED for kind in self.kinds)

    @property
    def may_kill_driver(self) -> bool:
        return any(kind.name in DRIVER_DIES for kind in self.kinds)

    def random(self, kind: Kind) -> random.Random:
        """For the choices of a fault, such as its host: independent of the plan, and of the other faults."""
        return random.Random(f"{self.seed} {kind.name}")


def make_plan(seed: int, faults: int, names: Sequence[str], phases: Sequence[str]) -> Plan:
    """The plan of a round: the first kind in turn, everything else at random."""
    rng = random.Random(seed)
    first = names[seed % len(names)]
    others = rng.sample([name for name in dict.fromkeys(names) if name != first], faults - 1)
    chosen = [KINDS[name] for name in sorted((first, *others), key=lambda name: name in ENDS_COMMAND)]
    if any(kind.needs_checkpoint for kind in chosen):
        phases = [phase for phase in phases if phase != "start"] or phases
    longest = LONG_SECONDS_ON_S3 if any(kind.on_s3 for kind in chosen) else LONG_SECONDS
    return Plan(
        seed,
        tuple(chosen),
        phase=rng.choice(list(phases)),
        seconds=rng.choice((BRIEF_SECONDS, longest)),
        moment=rng.random(),
        gap_seconds=rng.uniform(0, 4),
    )
