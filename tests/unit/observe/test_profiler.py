"""The table of --profile, and the profiler's end."""

import pytest
import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import EventList, FunctionEvent

from vgg_ddp.observe.profiler import SKIPPED_STEPS, STEPS, WARMUP_STEPS, StepProfiler, format_table
from vgg_ddp.run.files import PROFILE_FILE, TRACE_FILE
from vgg_ddp.run.saver import Saver
from vgg_ddp.run.storage import Folder

CPU = torch.device("cpu")
ALL_STEPS = SKIPPED_STEPS + WARMUP_STEPS + STEPS
LONG_NAME = "void kernel<" + "at::native::CUDAFunctor_add<float>, " * 10 + ">"


def test_profile_covers_a_few_steps_and_lists_the_slowest_operators(run: Folder) -> None:
    # Left over from before a resume; a reader that waits for the new profile must not find it.
    run.write(PROFILE_FILE, b"the old table")
    profiler = StepProfiler(run, Saver(run, rank=0), CPU)
    matrix = torch.ones(400, 400)
    for _ in range(ALL_STEPS):
        assert not run.exists(PROFILE_FILE)
        matrix @ matrix
        profiler.step()
    # Further steps have no effect.
    profiler.step()
    table = run.read(PROFILE_FILE).decode().splitlines()
    assert "aten::mm" in table[2] and table[2].split()[2] == "1"
    assert table[-1].endswith(TRACE_FILE)
    assert run.exists(TRACE_FILE)


def test_profile_that_fails_is_noted_once_and_the_steps_go_on(
    run: Folder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # The profiler writes its trace to a temporary folder.
    monkeypatch.setattr("tempfile.tempdir", "/no/such/folder")
    profiler = StepProfiler(run, Saver(run, rank=0), CPU)
    for _ in range(ALL_STEPS + 3):
        torch.ones(8, 8) @ torch.ones(8, 8)
        profiler.step()
    error = capsys.readouterr().err
    assert error.startswith("NOTE: the steps could not be profiled: [Errno 2]") and error.count("\n") == 1


@pytest.mark.parametrize("steps", [0, SKIPPED_STEPS + 1, ALL_STEPS - 1])
def test_run_that_ends_early_stops_the_profiler_and_says_that_there_is_no_profile(
    run: Folder, capsys: pytest.CaptureFixture[str], steps: int
) -> None:
    profiler = StepProfiler(run, Saver(run, rank=0), CPU)
    for _ in range(steps):
        profiler.step()
    profiler.close()
    assert capsys.readouterr().err == f"NOTE: there is no profile: the run ended before step {ALL_STEPS}.\n"
    assert not torch.autograd._profiler_enabled()
    assert not run.exists(PROFILE_FILE)
    # Nothing more to stop or to say.
    profiler.step()
    profiler.close()
    assert not capsys.readouterr().err


def event(number: int, name: str, start: float, stop: float, **settings: object) -> FunctionEvent:
    return FunctionEvent(number, name, 1, start, stop, stack=[], use_device="cuda", **settings)


def profiled(*events: FunctionEvent) -> EventList:
    """Averages as torch's profiler returns them."""
    found = EventList(events, use_device="cuda")
    found._build_tree()
    return found.key_averages()


def test_time_on_a_gpu_is_counted_once() -> None:
    # As torch 2.14 builds them from a trace: the time of a kernel is also that of the operator that launched it (its
    # parent in the tree has the rest), and of the annotations around them, on both devices.
    add, mm = event(1, "aten::add", 0, 100), event(2, "aten::mm", 100, 900)
    add.append_kernel(LONG_NAME, 0, 3000.0)
    mm.append_kernel("sgemm", 0, 9000.0)
    on_gpu = {"device_type": DeviceType.CUDA}
    averages = profiled(
        event(3, "ProfilerStep*", 0, 1000, is_user_annotation=True),
        event(4, "Optimizer.step#SGD.step", 0, 950, is_user_annotation=True),
        add,
        mm,
        event(5, "cudaLaunchKernel", 110, 120),
        event(6, LONG_NAME, 5000, 8000, **on_gpu),
        event(7, "sgemm", 8000, 17000, **on_gpu),
        event(8, "Memcpy HtoD (Pinned -> Device)", 17000, 17600, **on_gpu),
        event(9, "Optimizer.step#SGD.step", 5000, 17600, is_user_annotation=True, **on_gpu),
        event(10, "ProfilerStep*", 5000, 17600, is_user_annotation=True, **on_gpu),
    )
    title, _, *rows, _ = format_table(averages, on_gpu=True).splitlines()
    # 12.6 ms in 3 steps.
    assert "3 steps, 4.2 ms of GPU time each" in title and title.endswith("kernels")
    assert [row.split(maxsplit=3) for row in rows[::2]] == [
        ["3.00", "71.4%", "0", "sgemm"],
        ["0.20", "4.8%", "0", "Memcpy HtoD (Pinned -> Device)"],
    ]
    assert rows[1].split()[:2] == ["1.00", "23.8%"] and len(rows[1]) < 130 and rows[1].endswith("...")


def test_gpu_without_events_is_said_and_the_cpu_is_shown() -> None:
    averages = profiled(event(1, "aten::mm", 0, 900), event(2, "cudaLaunchKernel", 100, 400))
    said, title, _, *rows, _ = format_table(averages, on_gpu=True).splitlines()
    assert said == "The GPU's times are not available: torch's profiler received no events from the GPU."
    assert "0.3 ms of CPU time each" in title
    assert [row.split()[1::2] for row in rows] == [["66.7%", "aten::mm"], ["33.3%", "cudaLaunchKernel"]]


def test_empty_profile_is_an_empty_table() -> None:
    for on_gpu in (False, True):
        assert "0.0 ms" in format_table(profiled(), on_gpu)
