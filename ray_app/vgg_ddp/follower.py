"""What a person sees of a run that goes on: a line for each epoch and, on a terminal, a progress bar below them."""

import logging
import math
import os
import sys
import threading
import time
from contextlib import nullcontext
from datetime import timedelta

from vgg_ddp.report import (
    PROFILE_FILE,
    PROGRESS_FILE,
    Row,
    format_row,
    read_metrics,
    read_progress,
    read_startup,
)
from vgg_ddp.runs import Run

logger = logging.getLogger(__name__)

# How often the workers say how far they are. A write to an object store takes a while and costs money.
LIVE_SECONDS = {"local": 0.5, "remote": 10.0}
# A first step that takes longer than this waits for something.
PATIENCE_SECONDS = 120.0


class Follower:
    """Shows on standard output what appears in a run's folder, wherever the workers are.

    Attributes:
        live_seconds: how often the workers shall say how far they are; None if there is no terminal to show it on.
    """

    def __init__(self, run: Run, started_at: float) -> None:
        self._run = run.folder
        self._epochs = run.config.epochs
        self._started_at = started_at
        self._saw_first_step = False
        # Workers of Ray's may have to wait for machines.
        self._wonders_from = time.monotonic() + (PATIENCE_SECONDS if run.config.num_workers else math.inf)
        self._awaits_profile = run.config.profile
        self._shown: list[Row] = []
        has_terminal = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        self.live_seconds = LIVE_SECONDS["local" if run.folder.is_local else "remote"] if has_terminal else None
        self._bar = Bar(self._epochs) if has_terminal else None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="follower", daemon=True)

    def __enter__(self) -> "Follower":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _follow(self) -> None:
        poll_seconds = 0.5 if self._run.is_local else 3.0
        with self._bar.progress if self._bar else nullcontext():
            while not self._ended.wait(poll_seconds):
                self._look()
        self._look()

    def _look(self) -> None:
        try:
            self._print_what_is_new()
            if self._bar:
                self._bar.show(read_progress(self._run), self._started_at)
                if self._ended.is_set():
                    self._run.delete(PROGRESS_FILE)
        except OSError as error:
            # The workers have ways of their own to tell of storage that fails for good.
            logger.warning("%s cannot be read: %s", self._run, error)

    def _print_what_is_new(self) -> None:
        first_step = 0.0 if self._saw_first_step else read_startup(self._run).get("first step", 0.0)
        if first_step > self._started_at:
            print(f"Started:   first step {first_step - self._started_at:.1f} s after the command", flush=True)
            self._saw_first_step = True
        if not self._saw_first_step and time.monotonic() >= self._wonders_from:
            print(
                f"NOTE: no step yet after {PATIENCE_SECONDS:g} s: the workers still start, or wait for machines, CPUs "
                "or GPUs; `ray status` shows what the cluster has, and what is in use.",
                flush=True,
            )
            self._wonders_from = math.inf
        if self._saw_first_step and self._awaits_profile and self._run.exists(PROFILE_FILE):
            print(self._run.read(PROFILE_FILE).decode(), flush=True)
            self._awaits_profile = False
        rows = read_metrics(self._run)
        # A restart takes the last epochs back: they are shown again once they are done again.
        known = [row["time"] == shown["time"] for row, shown in zip(rows, self._shown, strict=False)]
        for row in rows[[*known, False].index(False) :]:
            print(format_row(row, self._epochs), flush=True)
        self._shown = rows


class Bar:
    """A progress bar over all steps of a run; what others print meanwhile appears above it."""

    def __init__(self, epochs: int) -> None:
        from rich.progress import BarColumn, Progress, TextColumn

        self._epochs = epochs
        # The epochs' lines stay; the bar goes with the training.
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[detail]}"),
            transient=True,
            refresh_per_second=4,
        )
        self._task = self.progress.add_task("starting", total=None, detail="")

    def show(self, progress: dict[str, float], started_at: float) -> None:
        """Show what progress.json holds, unless it is of an earlier command."""
        if progress.get("time", 0.0) < started_at:
            return
        step, per_epoch = int(progress["step"]), int(progress["steps_per_epoch"])
        epoch = min(step // per_epoch + 1, self._epochs)
        total = per_epoch * self._epochs
        self.progress.update(self._task, description=f"epoch {epoch}/{self._epochs}", total=total, completed=step)
        seconds_left = self.progress.tasks[0].time_remaining
        parts = [
            f"step {step:,}/{total:,}",
            f"{progress['images_per_second']:,.0f} images/s",
            f"loss {progress['loss']:.4f}",
            f"ETA {timedelta(seconds=round(seconds_left))}" if seconds_left is not None else "",
        ]
        self.progress.update(self._task, detail="  ".join(parts))
