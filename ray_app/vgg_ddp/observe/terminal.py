"""Follow a run from the driver: print a line per epoch, show a progress bar, write TensorBoard's event file."""

import math
import os
import sys
import threading
import time
from contextlib import AbstractContextManager, ExitStack, suppress
from datetime import timedelta

from vgg_ddp.observe.tensorboard import EventFile
from vgg_ddp.run.chosen import CHOSEN_FILE, format_chosen, read_chosen
from vgg_ddp.run.files import (
    METRICS_FILE,
    PROFILE_FILE,
    PROGRESS_FILE,
    STARTUP_FILE,
    Row,
    has_validation,
    metrics_from,
    read_progress,
    read_startup,
)
from vgg_ddp.run.lease import LeaseLostError
from vgg_ddp.run.notes import noted
from vgg_ddp.run.runs import Run
from vgg_ddp.run.summary import format_row, format_test, kept_row

POLL_SECONDS = {"local": 0.5, "remote": 3.0}
# Print a note if the first step takes longer than this.
SECONDS_BEFORE_NOTE = 120.0


class Follower:
    """Polls a run's folder in a thread and prints new results; works wherever the workers are.

    The run does not depend on it: each kind of failure is printed once, and everything else continues.
    """

    def __init__(self, run: Run, started_at: float, show_bar: bool = True) -> None:
        self._run = run.folder
        self._epochs = run.config.epochs
        self._started_at = started_at
        self._saw_first_step = False
        # Ray's workers may have to wait for machines.
        self._note_at = time.monotonic() + (math.inf if run.config.num_workers == 0 else SECONDS_BEFORE_NOTE)
        self._awaits_profile = run.config.profile
        self._printed: list[Row] = []
        self._rows: list[Row] = []
        self._content = b""
        self._events = EventFile(self._run)
        self._noted: set[str] = set()
        self._bar: Bar | None = None
        if show_bar and sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
            with self._optional("the progress bar cannot be shown"):
                self._bar = Bar(self._epochs)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="follower", daemon=True)

    def __enter__(self) -> "Follower":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _optional(self, failure: str) -> AbstractContextManager[None]:
        return noted(failure, self._noted)

    def _follow(self) -> None:
        poll_seconds = POLL_SECONDS["local" if self._run.is_local else "remote"]
        with ExitStack() as bar:
            if self._bar:
                with self._optional("the progress bar cannot be shown"):
                    bar.enter_context(self._bar.progress)
            while not self._ended.wait(poll_seconds):
                self._poll()
            with self._optional("the progress bar cannot be removed"):
                bar.close()
        self._poll()
        with suppress(OSError):
            self._run.delete(PROGRESS_FILE)

    def _poll(self) -> None:
        # If the storage fails permanently, the workers report that and end the run.
        with self._optional(f"{self._run / STARTUP_FILE} cannot be read"):
            self._print_start()
        with self._optional(f"{self._run / METRICS_FILE} cannot be read"):
            rows = self._read_rows()
            self._print_epochs(rows)
            # That another command has taken over the run ends it, and is reported then.
            with self._optional("TensorBoard's event file cannot be written"), suppress(LeaseLostError):
                self._events.write(rows)
        with self._optional("the progress bar cannot be updated"):
            if self._bar:
                self._bar.show(read_progress(self._run), self._started_at)
        with self._optional(f"{self._run / PROFILE_FILE} cannot be read"):
            self._print_profile()

    def _read_rows(self) -> list[Row]:
        """The rows of metrics.csv. The file grows with each epoch, so it is parsed only if it has changed."""
        try:
            content = self._run.read(METRICS_FILE)
        except FileNotFoundError:
            return []
        if content != self._content:
            self._rows, self._content = metrics_from(self._run, content), content
        return self._rows

    def _print_start(self) -> None:
        first_step = 0.0 if self._saw_first_step else read_startup(self._run).get("first step", 0.0)
        if first_step > self._started_at:
            self._saw_first_step = True
            with self._optional(f"{self._run / CHOSEN_FILE} is from another version"):
                if chosen := read_chosen(self._run):
                    print(f"Training:  {format_chosen(chosen)}")
            print(f"Started:   first step {first_step - self._started_at:.1f} s after the command", flush=True)
        if not self._saw_first_step and time.monotonic() >= self._note_at:
            print(
                f"NOTE: no step yet after {SECONDS_BEFORE_NOTE:g} s: the workers are still starting, or waiting for "
                "machines, CPUs, or GPUs; `ray status` shows what the cluster has and what is in use.",
                flush=True,
            )
            self._note_at = math.inf

    def _print_profile(self) -> None:
        if self._saw_first_step and self._awaits_profile and self._run.exists(PROFILE_FILE):
            print(self._run.read(PROFILE_FILE).decode(), flush=True)
            self._awaits_profile = False

    def _print_epochs(self, rows: list[Row]) -> None:
        # A restart may repeat the last epochs; they are then printed again.
        known = [row["time"] == printed["time"] for row, printed in zip(rows, self._printed, strict=False)]
        for row in rows[[*known, False].index(False) :]:
            print(format_row(row, self._epochs), flush=True)
        tested = kept_row(rows) if has_validation(rows) else None
        if tested and not math.isnan(tested["test_accuracy"]) and tested not in self._printed:
            print(format_test(tested, self._epochs), flush=True)
        self._printed = rows


class Bar:
    """A progress bar over all steps of a run; other output appears above it."""

    def __init__(self, epochs: int) -> None:
        from rich.progress import BarColumn, Progress, TextColumn

        self._epochs = epochs
        # The lines of the epochs stay; the bar disappears at the end.
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[detail]}"),
            transient=True,
            refresh_per_second=4,
        )
        self._task = self.progress.add_task("starting", total=None, detail="")

    def show(self, progress: dict[str, float], started_at: float) -> None:
        """Show the content of progress.json, unless it is left over from an earlier command."""
        if progress.get("time", 0.0) < started_at:
            return
        step, steps_per_epoch = int(progress["step"]), int(progress["steps_per_epoch"])
        epoch = min(step // steps_per_epoch + 1, self._epochs)
        total = steps_per_epoch * self._epochs
        self.progress.update(self._task, description=f"epoch {epoch}/{self._epochs}", total=total, completed=step)
        seconds_left = self.progress.tasks[0].time_remaining
        parts = [
            f"step {step:,}/{total:,}",
            f"{progress['images_per_second']:,.0f} images/s",
            f"loss {progress['loss']:.4f}",
            f"ETA {timedelta(seconds=round(seconds_left))}" if seconds_left is not None else "",
        ]
        self.progress.update(self._task, detail="  ".join(parts))
