"""The decisions of a single process between steps."""

import time
from dataclasses import dataclass

import pytest
import torch

from vgg_ddp.worker.decisions import (
    SECONDS_BETWEEN_EPOCH_END_CHECKPOINTS,
    SECONDS_BETWEEN_PREEMPTION_CHECKS,
    Control,
    Decision,
)

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
    assert Control(CPU, 300.0, None, never).decide() == Decision()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_first_bad_step_is_remembered(bad: float) -> None:
    control = Control(CPU, 300.0, None, never)
    for step, loss in enumerate([1.0, 0.0, bad, 2.0, float("nan")]):
        control.watch(step, torch.tensor(loss))
        assert control.decide().bad_step == (None if step < 2 else 2)


def test_step_0_can_be_the_bad_step() -> None:
    control = Control(CPU, 300.0, None, never)
    control.watch(0, torch.tensor(float("nan")))
    assert control.decide().bad_step == 0


def test_large_but_finite_loss_is_not_bad() -> None:
    control = Control(CPU, 300.0, None, never)
    control.watch(3, torch.tensor(3e38))
    assert control.decide().bad_step is None


def test_late_step_is_remembered_exactly() -> None:
    control = Control(CPU, 300.0, None, never)
    control.watch(2**24 + 1, torch.tensor(float("nan"), dtype=torch.bfloat16))
    assert control.decide().bad_step == 2**24 + 1


def test_checkpoint_is_due_after_its_interval(clock: Clock) -> None:
    control = Control(CPU, 300.0, None, never)
    clock.now += 299.9
    assert not control.decide().save
    clock.now += 0.1
    assert control.decide().save
    # It remains due until it is saved.
    assert control.decide().save
    control.mark_saved()
    assert not control.decide().save


def test_epoch_end_is_saved_if_the_last_checkpoint_is_old_enough(clock: Clock) -> None:
    control = Control(CPU, 300.0, None, never)
    clock.now += SECONDS_BETWEEN_EPOCH_END_CHECKPOINTS - 0.1
    assert not control.decide().save_at_epoch_end
    clock.now += 0.1
    assert control.decide().save_at_epoch_end
    assert not control.decide().save
    control.mark_saved()
    assert not control.decide().save_at_epoch_end


def test_preemption_is_checked_once_per_interval(clock: Clock) -> None:
    control = Control(CPU, 300.0, None, never)
    assert not control.decide().check_preemption
    clock.now += SECONDS_BETWEEN_PREEMPTION_CHECKS
    assert control.decide().check_preemption
    assert not control.decide().check_preemption


def test_stop_request_stops_the_run() -> None:
    requested = False
    control = Control(CPU, 300.0, lambda: requested, never)
    assert not control.decide().stop
    requested = True
    assert control.decide().stop


def test_each_preemption_is_reported_once() -> None:
    control = Control(CPU, 300.0, None, never)
    seen = [
        control.is_new_preemption(ranks, deadline) for ranks, deadline in (([1], 5), ([1], 5), ([1, 2], 5), ([1, 2], 9))
    ]
    assert seen == [True, False, True, True]


@pytest.mark.usefixtures("clock")
def test_failure_to_write_ends_the_run() -> None:
    assert Control(CPU, 300.0, None, lambda: True).decide() == Decision(give_up=True)
