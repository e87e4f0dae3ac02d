"""The protocol by which commands save, resume, and take over a run on S3, in many interleavings of their requests.

Storage, processes, and the clock are simulated (`support/simulated_run.py`); the rest is the program's own code.
`PROTOCOL_EXAMPLES=5000 pytest tests/unit/run/test_protocol.py` explores more interleavings, others each time.
"""

from contextlib import ExitStack
from itertools import count, cycle

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from support.exploration import STEP, exploration
from support.simulated_run import Runs, simulated_runs
from support.simulated_s3 import FAULTS
from vgg_ddp.run.storage import MANIFEST_FILE, STATE_FILE

# How far a request is when its process is interrupted: not sent, not carried out, or not answered.
PHASES = ("begun", "sent", "done")
WHO = {"command": slice(None), "driver": slice(1), "worker": slice(1, None)}
DAMAGES = {
    "cut": lambda content: content[: len(content) // 2],
    "emptied": lambda _: b"",
    "changed": lambda content: content[:-20] + bytes(byte ^ 1 for byte in content[-20:]),
}


def _count_writes() -> int:
    with simulated_runs() as runs:
        command = runs.start(0)
        runs.world.run(100.0)
        assert command.outcome == "finished" and not runs.violations
        return len(runs.store.writes)


@pytest.mark.parametrize(
    ("who", "how", "phases"),
    [
        *((who, "kill", ("sent", "done")) for who in WHO),
        *((who, "freeze", PHASES) for who in ("driver", "worker")),
        ("driver", "stop", ("done",)),
    ],
)
def test_command_interrupted_at_each_write_leaves_a_run_that_another_one_finishes(
    who: str, how: str, phases: tuple[str, ...]
) -> None:
    for index in range(_count_writes()):
        for phase in phases:
            with simulated_runs() as runs:
                first = runs.start(0)
                runs.world.run(100.0, lambda: runs.has_reached(index, phase))  # noqa: B023
                runs.interrupt(first.processes[WHO[who]], how)
                _take_over(runs)
                assert not runs.violations, f"{who} {how} at {runs.store.writes[index].name} {phase}"


def _take_over(runs: Runs) -> None:
    runs.start(1)
    # It has taken over, but saved nothing yet.
    runs.world.run(34.0)
    runs.deliver()
    runs.world.run(36.0)
    runs.finish()


def test_command_frozen_at_any_moment_writes_nothing_once_another_has_taken_over() -> None:
    for index in count(step=STEP):
        steps = count()
        with simulated_runs() as runs:
            first = runs.start(0)
            runs.world.run(100.0, lambda: next(steps) >= index)  # noqa: B023
            if not first.is_alive():
                assert first.outcome == "finished" and index > 100
                break
            runs.interrupt(first.processes, "freeze")
            _take_over(runs)
            assert not runs.violations, index


@pytest.mark.parametrize("file", [STATE_FILE, MANIFEST_FILE])
@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("indices", [[0], [1], [0, 1]])
def test_damaged_checkpoint_is_never_resumed_and_costs_one_interval(file: str, how: str, indices: list[int]) -> None:
    with simulated_runs() as runs:
        first = runs.start(0)
        runs.world.run(100.0, lambda: len(runs.saved) == 2)
        runs.interrupt(first.processes, "kill")
        for index in indices:
            runs.damage(index, file, DAMAGES[how])
        runs.start(0)
        runs.world.run(60.0)
        runs.finish()
        assert not runs.violations


@pytest.mark.parametrize("following", [0, 1, 2])
def test_command_frozen_again_right_after_it_woke_does_not_write_once_another_has_taken_over(following: int) -> None:
    for index in range(_count_writes()):
        with simulated_runs() as runs:
            first = runs.start(0)
            runs.world.run(100.0, lambda: runs.has_reached(index, "begun"))  # noqa: B023
            runs.interrupt(first.processes, "freeze")
            # Long enough that the lease must be renewed before the next write.
            runs.world.run(20.0)
            runs.wake()
            again = len(runs.store.writes) + following
            runs.world.run(100.0, lambda: runs.has_reached(again, "done"))  # noqa: B023
            runs.interrupt(first.processes, "freeze")
            runs.start(1)
            runs.world.run(60.0)
            runs.finish()
            assert not runs.violations, (index, again)


class Protocol(RuleBasedStateMachine):
    """What can happen to a run, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.runs = self.stack.enter_context(simulated_runs())

    def run(self, seconds: float, order: list[int], until_write: int = -1, phase: str = "") -> None:
        turns = cycle(order)
        self.runs.world.run(
            seconds,
            lambda: until_write >= 0 and self.runs.has_reached(until_write, phase),
            lambda _: next(turns),
        )

    @precondition(lambda self: sum(command.is_alive() for command in self.runs.commands) < 3)
    @rule(machine=st.integers(0, 1))
    def start_command(self, machine: int) -> None:
        self.runs.start(machine)

    @rule(seconds=st.sampled_from([1.0, 5.0, 12.0, 33.0]), order=st.lists(st.integers(0, 3), min_size=1, max_size=9))
    def let_time_pass(self, seconds: float, order: list[int]) -> None:
        self.run(seconds, order)

    @precondition(lambda self: self.runs.world.processes)
    @rule(
        count=st.integers(0, 12),
        phase=st.sampled_from(PHASES),
        who=st.sampled_from([*WHO, "process"]),
        how=st.sampled_from(["kill", "freeze", "freeze", "stop"]),
        order=st.lists(st.integers(0, 3), min_size=1, max_size=5),
    )
    def interrupt_at_a_write(self, count: int, phase: str, who: str, how: str, order: list[int]) -> None:
        index = len(self.runs.store.writes) + count
        self.run(20.0, order, index, phase)
        if self.runs.has_reached(index, phase):
            process = self.runs.store.writes[index].process
            processes = self.runs.command_of(process).processes
            self.runs.interrupt([process] if who == "process" else processes[WHO[who]], how)

    @precondition(lambda self: self.runs.commands)
    @rule(
        steps=st.integers(0, 150),
        number=st.integers(0, 2),
        who=st.sampled_from([*WHO]),
        how=st.sampled_from(["kill", "freeze", "freeze", "stop"]),
    )
    def interrupt_after_some_steps(self, steps: int, number: int, who: str, how: str) -> None:
        left = iter(range(steps))
        self.runs.world.run(20.0, lambda: next(left, None) is None)
        command = self.runs.commands[-1 - number % len(self.runs.commands)]
        self.runs.interrupt(command.processes[WHO[who]], how)

    @rule()
    def wake_all(self) -> None:
        self.runs.wake()

    @rule()
    def deliver_what_is_under_way(self) -> None:
        self.runs.deliver()

    @rule(faults=st.lists(st.sampled_from(["", *FAULTS]), min_size=1, max_size=12))
    def let_the_next_writes_fail(self, faults: list[str]) -> None:
        self.runs.store.faults = list(faults)

    @rule(number=st.integers(1, 30))
    def let_the_next_reads_fail(self, number: int) -> None:
        self.runs.store.failing_reads = number
        # A run whose metrics cannot be read counts as unfinished, and is finished again.
        self.runs.may_finish_again = True

    @rule(
        index=st.integers(0, 1),
        file=st.sampled_from([STATE_FILE, MANIFEST_FILE]),
        how=st.sampled_from([*DAMAGES]),
    )
    def damage_a_checkpoint(self, index: int, file: str, how: str) -> None:
        self.runs.damage(index, file, DAMAGES[how])

    @invariant()
    def nothing_is_violated(self) -> None:
        assert not self.runs.violations

    def teardown(self) -> None:
        with self.stack:
            if not self.runs.violations:
                self.runs.finish()
            assert not self.runs.violations


TestProtocol = Protocol.TestCase
TestProtocol.settings = exploration(examples=150, steps=15)
