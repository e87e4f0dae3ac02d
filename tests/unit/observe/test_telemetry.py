"""What a rank reports during training."""

import mmap
import time
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from torch import nn

from vgg_ddp.observe.telemetry import StepClock, Telemetry, own_memory_bytes
from vgg_ddp.run.files import read_progress
from vgg_ddp.run.saver import Saver
from vgg_ddp.run.storage import Folder

CPU = torch.device("cpu")


def test_own_memory_grows_by_the_allocated_size() -> None:
    size = 2**27
    before = own_memory_bytes()
    # Allocated from the kernel: the C library may have kept memory that other tests freed.
    block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    np.frombuffer(block, np.uint8)[:] = 1
    grown = own_memory_bytes() - before
    assert 0.9 * size < grown < 1.2 * size
    assert own_memory_bytes() <= psutil.Process().memory_info().rss


def test_progress_has_the_speed_since_the_last_write(run: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(monotonic=lambda: 0.0, time=time.time)
    monkeypatch.setattr("vgg_ddp.observe.telemetry.time", clock)
    saver = Saver(run, rank=0)
    telemetry = Telemetry(run, saver, 0, CPU, nn.Linear(2, 2), under_ray=False, profiled=False)
    for seconds, steps in ((0.4, 1), (10.0, 4), (10.5, 10)):
        clock.monotonic = lambda seconds=seconds: seconds
        for _ in range(steps):
            telemetry.end_step()
        assert telemetry.progress_is_due() == (seconds >= 0.5)
        if telemetry.progress_is_due():
            telemetry.write_progress(steps, steps_per_epoch=10, global_batch_size=100, loss=2.5)
            saver.wait()
            assert not telemetry.progress_is_due()
    progress = read_progress(run)
    assert (progress["step"], progress["steps_per_epoch"], progress["loss"]) == (10, 10, 2.5)
    # Ten steps of 100 images took half a second.
    assert progress["images_per_second"] == 2000


def test_only_rank_zero_writes_progress(run: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vgg_ddp.observe.telemetry.SECONDS_BETWEEN_PROGRESS", {"local": 0.0})
    due = [
        Telemetry(run, Saver(run, rank), rank, CPU, nn.Linear(2, 2), under_ray=False, profiled=False).progress_is_due()
        for rank in (0, 1)
    ]
    assert due == [True, False]


class Watch:
    """A fake clock that a test advances."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def advance(self, seconds: float) -> None:
        self.seconds += seconds


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    """Replaces the clock of StepClock."""
    watch = Watch()
    monkeypatch.setattr(time, "perf_counter", lambda: watch.seconds)
    return watch


class Slow(torch.autograd.Function):
    """The identity; its backward pass takes 8 s."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, values: torch.Tensor, watch: Watch) -> torch.Tensor:
        ctx.watch = watch
        return values.clone()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        ctx.watch.advance(8)
        return gradient, None


def test_phases_add_up_and_compute_ends_with_the_last_gradient(watch: Watch) -> None:
    layer = nn.Linear(3, 2)
    clock = StepClock(CPU, layer)
    clock.start()
    watch.advance(4)
    clock.mark("data")
    Slow.apply(layer(torch.ones(4, 3)), watch).sum().backward()
    watch.advance(2)
    clock.mark("communication")
    watch.advance(1)
    clock.mark("compute")
    assert clock.stop() == {"data": 4, "compute": 9, "communication": 2, "checkpoint": 0}


def test_step_that_is_not_measured_has_no_phases() -> None:
    layer = nn.Linear(3, 2)
    clock = StepClock(CPU, layer)
    clock.mark("data")
    layer(torch.ones(4, 3)).sum().backward()
    assert clock.stop() == {}
    clock.start()
    assert clock.stop() == {"data": 0, "compute": 0, "communication": 0, "checkpoint": 0}
    assert clock.stop() == {}


def test_frozen_first_layer_is_skipped() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    model[0].requires_grad_(False)
    clock = StepClock(CPU, model)
    clock.start()
    model(torch.ones(4, 3)).sum().backward()
    clock.mark("communication")
    assert clock.stop()["compute"] > 0
