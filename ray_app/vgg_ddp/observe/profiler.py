"""Profile a few steps: write a trace for a viewer, and a table of the most expensive operators."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from vgg_ddp.run.files import PROFILE_FILE, TRACE_FILE
from vgg_ddp.run.notes import noted
from vgg_ddp.run.saver import Saver
from vgg_ddp.run.storage import Folder

# The first steps allocate memory, and the profiler's own first step is slow.
SKIPPED_STEPS, WARMUP_STEPS, STEPS = 3, 1, 3
OPERATORS = 10


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
            on_trace_ready=self._write,
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
                self._profile.stop()
            self._steps_left = steps_left

    def _write(self, result: profile) -> None:
        with tempfile.TemporaryDirectory() as folder:
            trace = Path(folder, TRACE_FILE)
            result.export_chrome_trace(str(trace))
            content = trace.read_bytes()
        text = _format_table(result, on_gpu=self._device.type == "cuda")
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


def _format_table(result: profile, on_gpu: bool) -> str:
    """A table of the operators with the most self time."""
    name = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    operators = [operator for operator in result.key_averages() if not operator.key.startswith("ProfilerStep")]
    operators.sort(key=lambda operator: -getattr(operator, name))
    whole = sum(getattr(operator, name) for operator in operators)
    milliseconds = whole / STEPS / 1000
    lines = [
        f"Profile of rank 0: {STEPS} steps, {milliseconds:,.1f} ms each; its {OPERATORS} most expensive operators",
        f"  {'ms/step':>9}  {'share':>5}  {'calls':>5}  operator",
    ]
    for operator in operators[:OPERATORS]:
        microseconds = getattr(operator, name)
        share, calls = microseconds / whole, operator.count / STEPS
        lines.append(f"  {microseconds / STEPS / 1000:9,.2f}  {share:5.1%}  {calls:5,.0f}  {operator.key}")
    return "\n".join([*lines, f"Full trace, for ui.perfetto.dev or chrome://tracing: {TRACE_FILE}"])
