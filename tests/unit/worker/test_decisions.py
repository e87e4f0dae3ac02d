"""The decisions of a single process between steps."""

import json
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from support.ranks import run_ranks
from vgg_ddp.worker.decisions import (
    SECONDS_BETWEEN_DECISIONS,
    SECONDS_BETWEEN_EPOCH_END_CHECKPOINTS,
    SECONDS_BETWEEN_PREEMPTION_CHECKS,
    Control,
    Decision,
)
from vgg_ddp.worker.metrics import Sums

CPU = torch.device("cpu")


def never() -> bool:
    return False


@dataclass
class Clock:
    """A fake clock that a test sets."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


@pytest.mark.usefixtures("clock")
def test_first_decision_is_to_continue() -> None:
    assert Control(CPU, 300.0, None, never).decide(Sums(CPU)) == Decision()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_first_bad_step_is_remembered(bad: float) -> None:
    control = Control(CPU, 300.0, None, never)
    for step, loss in enumerate([1.0, 0.0, bad, 2.0, float("nan")]):
        control.watch(step, torch.tensor(loss))
        assert control.decide(Sums(CPU)).bad_step == (None if step < 2 else 2)


def test_step_0_can_be_the_bad_step() -> None:
    control = Control(CPU, 300.0, None, never)
    control.watch(0, torch.tensor(float("nan")))
    assert control.decide(Sums(CPU)).bad_step == 0


def test_large_but_finite_loss_is_not_bad() -> None:
    control = Control(CPU, 300.0, None, never)
    control.watch(3, torch.tensor(3e38))
    assert control.decide(Sums(CPU)).bad_step is None


def test_late_step_is_remembered_exactly() -> None:
    control = Control(CPU, 300.0, None, never)
    control.watch(2**24 + 1, torch.tensor(float("nan"), dtype=torch.bfloat16))
    assert control.decide(Sums(CPU)).bad_step == 2**24 + 1


def test_checkpoint_is_due_after_its_interval(clock: Clock) -> None:
    control = Control(CPU, 300.0, None, never)
    clock.now += 299.9
    assert not control.decide(Sums(CPU)).save
    clock.now += 0.1
    assert control.decide(Sums(CPU)).save
    # It remains due until it is saved.
    assert control.decide(Sums(CPU)).save
    control.mark_saved()
    assert not control.decide(Sums(CPU)).save


def test_epoch_end_is_saved_if_the_last_checkpoint_is_old_enough(clock: Clock) -> None:
    control = Control(CPU, 300.0, None, never)
    clock.now += SECONDS_BETWEEN_EPOCH_END_CHECKPOINTS - 0.1
    assert not control.decide(Sums(CPU)).save_at_epoch_end
    clock.now += 0.1
    assert control.decide(Sums(CPU)).save_at_epoch_end
    assert not control.decide(Sums(CPU)).save
    control.mark_saved()
    assert not control.decide(Sums(CPU)).save_at_epoch_end


def test_preemption_is_checked_once_per_interval(clock: Clock) -> None:
    control = Control(CPU, 300.0, None, never)
    assert not control.decide(Sums(CPU)).check_preemption
    clock.now += SECONDS_BETWEEN_PREEMPTION_CHECKS
    assert control.decide(Sums(CPU)).check_preemption
    assert not control.decide(Sums(CPU)).check_preemption


def test_stop_request_stops_the_run() -> None:
    requested = False
    control = Control(CPU, 300.0, lambda: requested, never)
    assert not control.decide(Sums(CPU)).stop
    requested = True
    assert control.decide(Sums(CPU)).stop


def test_each_preemption_is_reported_once() -> None:
    control = Control(CPU, 300.0, None, never)
    seen = [
        control.is_new_preemption(ranks, deadline) for ranks, deadline in (([1], 5), ([1], 5), ([1, 2], 5), ([1, 2], 9))
    ]
    assert seen == [True, False, True, True]


@pytest.mark.usefixtures("clock")
def test_failure_to_write_ends_the_run() -> None:
    assert Control(CPU, 300.0, None, lambda: True).decide(Sums(CPU)) == Decision(give_up=True)


def test_decision_has_the_mean_loss_of_this_rank() -> None:
    sums = Sums(CPU)
    sums.values += torch.tensor([6.0, 1.0, 4.0])
    assert Control(CPU, 300.0, None, never).decide(sums).mean_loss == 1.5


def take_steps(control: Control, clock: Clock, seconds: float, count: int) -> list[int]:
    """Take steps that last so long; return the numbers of those after which the ranks decide."""
    decided = []
    for step in range(count):
        is_due = control.is_due(is_last=False)
        clock.now += seconds
        if is_due:
            decided.append(step + 1)
            control.decide(Sums(CPU))
            # Evaluation and checkpoints are not steps.
            clock.now += 5.0
    return decided


def test_slow_steps_are_each_followed_by_a_decision(clock: Clock) -> None:
    control = Control(CPU, 300.0, None, never)
    assert take_steps(control, clock, SECONDS_BETWEEN_DECISIONS, 5) == [1, 2, 3, 4, 5]
    assert take_steps(control, clock, 2.0, 3) == [1, 2, 3]


def test_steps_between_decisions_grow_fourfold_to_about_a_quarter_of_a_second_or_32(clock: Clock) -> None:
    control = Control(CPU, 300.0, None, never)
    # Nothing is known about the first step until a decision has waited for it.
    assert take_steps(control, clock, 0.003, 300)[:7] == [1, 2, 6, 22, 54, 86, 118]
    control = Control(CPU, 300.0, None, never)
    assert take_steps(control, clock, 0.02, 60)[:6] == [1, 2, 6, 18, 30, 42]
    control = Control(CPU, 300.0, None, never)
    assert take_steps(control, clock, 0.1, 8) == [1, 2, 4, 6, 8]


def test_frequent_checkpoints_need_frequent_decisions(clock: Clock) -> None:
    control = Control(CPU, 0.01, None, never)
    assert take_steps(control, clock, 0.02, 4) == [1, 2, 3, 4]


def test_last_step_of_an_epoch_is_followed_by_a_decision(clock: Clock) -> None:
    control = Control(CPU, 300.0, None, never)
    take_steps(control, clock, 0.003, 6)
    assert [control.is_due(is_last) for is_last in (False, True)] == [False, True]


def decide_with_a_slow_rank(rank: int, folder: Path) -> None:
    """Two ranks; steps of the second one take 30 ms, those of the first one no time."""
    control, decided = Control(CPU, 300.0, None, lambda: rank == 1), []
    for step in range(30):
        is_due = control.is_due(is_last=False)
        time.sleep(0.03 * rank)
        control.watch(step, torch.tensor(float("nan") if (rank, step) == (0, 3) else 1.0))
        if is_due:
            decided.append((step, control.decide(Sums(CPU))))
    steps, decisions = zip(*decided, strict=True)
    assert decisions[0] == Decision(give_up=True) and decisions[-1].bad_step == 3
    (folder / str(rank)).write_text(json.dumps(steps))


def test_ranks_decide_after_the_same_steps_as_the_slowest_one_proposes(tmp_path: Path) -> None:
    run_ranks(2, decide_with_a_slow_rank, tmp_path)
    steps: list[int] = json.loads((tmp_path / "0").read_text())
    assert steps == json.loads((tmp_path / "1").read_text())
    # A quarter of a second is eight steps of 30 ms; sleeping takes a little longer than that.
    assert len(steps) >= 5 and max(later - earlier for earlier, later in pairwise(steps)) <= 8
