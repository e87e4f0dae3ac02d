"""How the hosts of a job agree on its end, whatever happens to them and to their network, and when.

The hosts are simulated (`support/simulated_hosts.py`); the code that decides is the program's own.
`PROTOCOL_EXAMPLES=5000 pytest tests/unit/sagemaker/container/test_verdict_protocol.py` explores more cases, others each
time.
"""

from contextlib import ExitStack
from itertools import count, cycle
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from support.exploration import STEP, exploration
from support.simulated_hosts import SimulatedJob, simulated_job

HOSTS = st.integers(0, 2)


def count_steps(folder: Path) -> int:
    """How many moments an undisturbed job has."""
    steps = count()
    with simulated_job(folder) as job:
        job.world.run(300.0, lambda: next(steps) > 0 and job.has_ended())
        assert job.has_succeeded() and not job.violations()
    return next(steps)


@pytest.mark.parametrize("number", [0, 1])
def test_host_that_is_killed_at_any_moment_fails_the_job_and_the_others_agree(tmp_path: Path, number: int) -> None:
    for index in range(0, count_steps(tmp_path), STEP):
        steps = count()
        with simulated_job(tmp_path) as job:
            job.world.run(300.0, lambda: next(steps) >= index)  # noqa: B023
            has_ended = job.hosts[number].verdict is not None
            job.kill(number)
            job.world.run(300.0, job.has_ended)
            assert not job.violations(), index
            assert has_ended or not job.has_succeeded(), index


class Verdicts(RuleBasedStateMachine):
    """What can happen to a job, in any order."""

    job: SimulatedJob

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        folder = self.stack.enter_context(TemporaryDirectory())
        self.job = self.stack.enter_context(simulated_job(Path(folder)))

    @rule(seconds=st.sampled_from([0.3, 1.0, 3.0, 9.0, 22.0]), order=st.lists(st.integers(0, 2), min_size=1))
    def let_time_pass(self, seconds: float, order: list[int]) -> None:
        turns = cycle(order)
        self.job.world.run(seconds, choose=lambda _: next(turns))

    @rule(steps=st.integers(1, 60))
    def let_something_happen(self, steps: int) -> None:
        left = iter(range(steps))
        self.job.world.run(20.0, lambda: next(left, None) is None)

    @rule(number=HOSTS)
    def kill(self, number: int) -> None:
        self.job.kill(number)

    @rule(number=HOSTS)
    def freeze(self, number: int) -> None:
        self.job.freeze(number)

    @rule()
    def wake_all(self) -> None:
        self.job.wake()

    @rule(number=HOSTS)
    def send_sigterm(self, number: int) -> None:
        self.job.hosts[number].request_stop()

    @rule(number=HOSTS, kind=st.sampled_from(["pip", "ray", "driver", "outputs"]))
    def let_a_program_fail(self, number: int, kind: str) -> None:
        self.job.fails.add((self.job.hosts[number].name, kind))

    @rule(number=HOSTS)
    def cut_the_network(self, number: int) -> None:
        self.job.cut_off(number)

    @rule()
    def mend_the_network(self) -> None:
        self.job.cut.clear()

    @rule(answers=st.integers(1, 20))
    def lose_answers(self, answers: int) -> None:
        self.job.loses_answers, self.job.was_disturbed = answers, True

    def teardown(self) -> None:
        with self.stack:
            self.job.wake()
            self.job.world.run(500.0, self.job.has_ended)
            assert not self.job.violations()


TestVerdicts = Verdicts.TestCase
TestVerdicts.settings = exploration(examples=300, steps=12)
