"""The kinds of faults of a cluster, and the choice of those of a round."""

import random
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.faults.cluster import clock, links, processes, storages
from benchmarks.faults.cluster.s3_proxy import BROKEN, CUT, THROTTLED
from benchmarks.faults.cluster.scene import Scene, Undo

PHASES = ("start", "training", "evaluation", "save", "end")
# Shorter and longer than all timeouts of the run and of Ray.
BRIEF_SECONDS, LONG_SECONDS = 4.0, 25.0
DRIVER_DIES = ("kill driver", "damaged checkpoint", "truncated checkpoint", "freeze driver")
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
        inject: disturbs a run, and returns a function that ends the fault.
        on_s3: whether the run has to be stored on S3.
        with_clocks: whether the hosts need clocks that can be set.
    """

    name: str
    inject: Callable[[Scene], Undo]
    on_s3: bool = False
    with_clocks: bool = False


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
        Kind("S3 returns old listings", storages.answer_old_listings, on_s3=True),
        Kind("damaged checkpoint", storages.damage_checkpoint(truncate=False)),
        Kind("truncated checkpoint", storages.damage_checkpoint(truncate=True)),
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
    def expects_no_reason(self) -> bool:
        """Whether the command may end without saying why: it was killed."""
        return any(kind.name in DRIVER_DIES for kind in self.kinds)


def make_plan(seed: int, faults: int, names: Sequence[str], phases: Sequence[str]) -> Plan:
    """The plan of a round: the kinds in turn, everything else at random."""
    rng = random.Random(seed)
    first = names[seed % len(names)]
    others = rng.sample([name for name in names if name != first], faults - 1)
    return Plan(
        seed,
        tuple(KINDS[name] for name in (first, *others)),
        phase=rng.choice(list(phases)),
        seconds=rng.choice((BRIEF_SECONDS, LONG_SECONDS)),
        moment=rng.random(),
        gap_seconds=rng.uniform(0, 4),
    )
