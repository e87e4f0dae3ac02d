"""Profile a few steps: write a trace for a viewer, and a table of what takes the most time."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from torch.autograd.profiler_util import EventList
from torch.profiler import ProfilerActivity, profile, schedule

from vgg_ddp.run.files import PROFILE_FILE, TRACE_FILE
from vgg_ddp.run.notes import noted, print_note
from vgg_ddp.run.saver import Saver
from vgg_ddp.run.storage import Folder

# The first steps allocate memory, the next one may be captured in a CUDA graph, and the profiler's own first step is
# slow.
SKIPPED_STEPS, WARMUP_STEPS, STEPS = 4, 1, 3
ROWS = 10
# The names of kernels contain the types of all their arguments.
NAME_CHARACTERS = 100
# Microseconds in all profiled steps, number of calls, and name.
Row = tuple[float, int, str]


class StepProfiler:
    """Profiles `STEPS` early steps of rank 0 and writes the results to the run folder."""

    def __init__(self, run: Folder, saver: Saver, device: torch.device) -> None:
        self._run, self._saver, self._device = run, saver, device
        # Left over from before a resume.
        for name in (PROFILE_FILE, TRACE_FILE):
            saver.write_if_possible(name, lambda name=name: run.delete(name))  # type: ignore[misc]
        # Otherwise, the profiler logs its start, its stop, and a missing GPU.
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
        self._profile = profile(
            activities=activities,
            schedule=schedule(wait=SKIPPED_STEPS, warmup=WARMUP_STEPS, active=STEPS, repeat=1),
        )
        self._steps_left = SKIPPED_STEPS + WARMUP_STEPS + STEPS
        self._profile.start()

    def step(self) -> None:
        """Count a step. After the last profiled one, write the files; later steps have no effect."""
        if not self._steps_left:
            return
        # Stays 0 if the profiler fails: it is not asked again.
        steps_left, self._steps_left = self._steps_left - 1, 0
        with noted("the steps could not be profiled"):
            # The profiler starts here. In a thread (Ray trains in one), it prints a harmless error.
            starts = steps_left == WARMUP_STEPS + STEPS
            with _without_stderr() if starts else nullcontext():
                self._profile.step()
            if not steps_left:
                self._write()
            self._steps_left = steps_left
        if not self._steps_left:
            self._stop()

    def close(self) -> None:
        """Stop the profiler if the run ends before the last profiled step; nothing is written then."""
        if self._steps_left:
            self._steps_left = 0
            self._stop()
            print_note(f"there is no profile: the run ended before step {SKIPPED_STEPS + WARMUP_STEPS + STEPS}.")

    def _stop(self) -> None:
        with noted("the profiler could not be stopped"):
            self._profile.stop()

    def _write(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            trace = Path(folder, TRACE_FILE)
            self._profile.export_chrome_trace(str(trace))
            content = trace.read_bytes()
        text = format_table(self._profile.key_averages(), on_gpu=self._device.type == "cuda")
        self._saver.write_if_possible(TRACE_FILE, lambda: self._run.write(TRACE_FILE, content))
        self._saver.write_if_possible(PROFILE_FILE, lambda: self._run.write(PROFILE_FILE, text.encode()))


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Discard everything that this process prints on stderr in this context, including from C++."""
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def format_table(averages: EventList, on_gpu: bool) -> str:
    """A table of the kernels that took the most time on the GPU; on a CPU, of the operators with the most self time.

    The profiler attributes a GPU's time to kernels, to the operators that launch them, and to annotations around
    operators. Kernels and copies are counted here, and nothing else: a CUDA graph is launched without operators.
    """
    kernels: list[Row] = [
        (event.self_device_time_total, event.count, event.key)
        for event in averages
        if event.device_type.name == "CUDA" and not event.is_user_annotation
    ]
    if sum(time for time, *_ in kernels):
        return _format_rows(kernels, "of GPU time each", "kernel")
    operators: list[Row] = [
        (event.self_cpu_time_total, event.count, event.key)
        for event in averages
        if event.device_type.name == "CPU" and not event.key.startswith("ProfilerStep")
    ]
    if not on_gpu:
        return _format_rows(operators, "each", "operator")
    missing = "The GPU's times are not available: torch's profiler received no events from the GPU.\n"
    return missing + _format_rows(operators, "of CPU time each", "operator")


def _format_rows(rows: list[Row], meaning: str, kind: str) -> str:
    rows = sorted(rows, key=lambda row: -row[0])
    whole = sum(microseconds for microseconds, *_ in rows)
    lines = [
        f"Profile of rank 0: {STEPS} steps, {whole / STEPS / 1000:,.1f} ms {meaning}; "
        f"its {ROWS} most expensive {kind}s",
        f"  {'ms/step':>9}  {'share':>5}  {'calls':>5}  {kind}",
    ]
    for microseconds, count, name in rows[:ROWS]:
        share, calls = microseconds / whole if whole else 0.0, count / STEPS
        name = name if len(name) <= NAME_CHARACTERS else f"{name[: NAME_CHARACTERS - 3]}..."
        lines.append(f"  {microseconds / STEPS / 1000:9,.2f}  {share:5.1%}  {calls:5,.0f}  {name}")
    return "\n".join([*lines, f"Full trace, for ui.perfetto.dev or chrome://tracing: {TRACE_FILE}"])
