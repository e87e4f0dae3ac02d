"""What a rank says of itself."""

import mmap
import time
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from torch import nn

from command import wait_until
from vgg_ddp.profiling import SKIPPED_STEPS, STEPS, WARMUP_STEPS, StepProfiler
from vgg_ddp.report import PROFILE_FILE, TRACE_FILE, read_progress
from vgg_ddp.saving import Saver
from vgg_ddp.storage import Folder
from vgg_ddp.telemetry import Telemetry, own_memory_bytes

CPU = torch.device("cpu")


def test_own_memory_grows_by_what_is_allocated() -> None:
    size = 2**27
    before = own_memory_bytes()
    # From the kernel: the C library may have kept what other tests freed.
    block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    np.frombuffer(block, np.uint8)[:] = 1
    grown = own_memory_bytes() - before
    assert 0.9 * size < grown < 1.2 * size
    assert own_memory_bytes() <= psutil.Process().memory_info().rss


def test_live_progress_tells_the_speed_since_it_was_written_last(run: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(monotonic=lambda: 0.0, time=time.time)
    monkeypatch.setattr("vgg_ddp.telemetry.time", clock)
    saver = Saver(run, rank=0)
    telemetry = Telemetry(run, saver, 0, CPU, nn.Linear(2, 2), under_ray=False, profiled=False)
    for seconds, images in ((10.0, 500), (10.25, 1000)):
        clock.monotonic = lambda seconds=seconds: seconds
        telemetry.write_live(images, {"step": images, "steps_per_epoch": 10, "loss": 2.5})
        wait_until(lambda: read_progress(run).get("step") == images, seconds=10)  # noqa: B023 - called at once
    progress = read_progress(run)
    assert (progress["step"], progress["loss"]) == (1000, 2.5)
    # The second 500 images took a quarter of a second.
    assert progress["images_per_second"] == 2000


def test_profile_covers_a_few_steps_and_names_what_took_the_time(run: Folder) -> None:
    # Of before the run was resumed: whoever waits for the new one must not find it.
    run.write(PROFILE_FILE, b"the old table")
    profiler = StepProfiler(run, Saver(run, rank=0), CPU)
    matrix = torch.ones(400, 400)
    for _ in range(SKIPPED_STEPS + WARMUP_STEPS + STEPS):
        assert not run.exists(PROFILE_FILE)
        matrix @ matrix
        profiler.step()
    # Further steps change nothing.
    profiler.step()
    table = run.read(PROFILE_FILE).decode().splitlines()
    assert "aten::mm" in table[2] and table[2].split()[2] == "1"
    assert table[-1].endswith(TRACE_FILE)
    assert run.exists(TRACE_FILE)
