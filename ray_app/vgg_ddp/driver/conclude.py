"""Report how a run ended: draw its curves, print the outcome, and build the result."""

import signal
import sys
from contextlib import suppress
from typing import Any

from vgg_ddp.flags import BAD_INPUT, UsageError
from vgg_ddp.job import Outcome
from vgg_ddp.machine import torchrun
from vgg_ddp.observe.tensorboard import EventFile
from vgg_ddp.result import Ended, RunResult
from vgg_ddp.run.curves import write_curves
from vgg_ddp.run.files import CURVES_FILE, METRICS_FILE, MODEL_FILE, PROGRESS_FILE, Row, read_metrics
from vgg_ddp.run.lock import locked
from vgg_ddp.run.notes import noted
from vgg_ddp.run.runs import Run
from vgg_ddp.run.summary import format_summary


def conclude(run: Run, outcome: Outcome | Exception) -> RunResult:
    """Draw the curves and print how the workers ended, or that they failed."""
    is_saved = isinstance(outcome, Exception) or outcome.kind != "unsaved"
    rows = _read_rows(run)
    has_curves = is_saved and _draw_curves(run, rows)
    if isinstance(outcome, Exception):
        print("error: training failed; the first failure is shown above.", file=sys.stderr)
        print(_how_to_resume(run), flush=True)
        return _result(run, "failed", rows, error=outcome)
    if outcome.kind in ("diverged", "unsaved"):
        print(f"error: {outcome.message}.", file=sys.stderr)
    elif outcome.kind == "stopped":
        print(f"\nStopped after step {outcome.step}.")
    elif outcome.kind == "finished":
        print(f"\nFinished {run.name}")
        _print_summary(rows)
        print(f"  run folder         {run.folder}")
        if has_curves:
            print(f"  curves             {run.folder / CURVES_FILE}")
    if outcome.kind in ("stopped", "unsaved") and not run.folder.lost:
        print(_how_to_resume(run), flush=True)
    return of_outcome(run, outcome, rows)


def of_outcome(run: Run, outcome: Outcome, rows: list[Row]) -> RunResult:
    """The result of a run that ended with this outcome."""
    number = outcome.signal_number if outcome.kind == "stopped" else None
    return _result(run, outcome.kind, rows, message=outcome.message, signal_number=number)


def interrupted(run: Run, signal_number: int) -> RunResult:
    """Print that a signal ended the command before the run was finished, or before its curves were drawn."""
    print(f"\nStopped by {signal.Signals(signal_number).name}.\n{_how_to_resume(run)}", flush=True)
    return _result(run, "stopped", _read_rows(run), signal_number=signal_number)


def finished_before(run: Run) -> RunResult:
    """Print that there is nothing to train; do what a command left undone that was killed at the very end."""
    rows = read_metrics(run.folder)
    print(f"Run {run.name} is already finished: there is nothing to train.")
    _print_summary(rows)
    print(f"  run folder         {run.folder}")
    print("Use a higher --epochs to train it further, or another --run-name for a new run.", flush=True)
    if torchrun.is_rank_zero():
        with suppress(OSError, UsageError):
            _complete(run, rows)
    return _result(run, "finished", rows)


def _complete(run: Run, rows: list[Row]) -> None:
    """Do what is left to do in a finished run, unless another command is using it.

    Raises:
        OSError: if the storage cannot be read or written.
        UsageError: if another command is using the run.
    """
    if run.folder.exists(PROGRESS_FILE) or not run.folder.exists(CURVES_FILE):
        with locked(run) as held:
            with noted("TensorBoard's event file cannot be written"):
                EventFile(held.folder).write(rows)
            _draw_curves(held, rows)
            held.folder.delete(PROGRESS_FILE)


def exit_code(result: RunResult) -> int:
    """The exit code of a command that ends with this result; for a signal, the one that shells report."""
    if result.signal_number is not None:
        return 128 + result.signal_number
    return {"finished": 0, "refused": BAD_INPUT}.get(result.ended, 1)


def _result(run: Run, ended: Ended, rows: list[Row], **more: Any) -> RunResult:
    model = str(run.folder / MODEL_FILE) if ended == "finished" else None
    return RunResult(run.name, str(run.folder), ended, rows, model, **more)


def _read_rows(run: Run) -> list[Row]:
    """The run's metrics, as far as they can be read."""
    with noted(f"{run.folder / METRICS_FILE} cannot be read"):
        return read_metrics(run.folder)
    return []


def _draw_curves(run: Run, rows: list[Row]) -> bool:
    """Draw the curves, if there are any; whether this worked."""
    if rows:
        with noted("the curves could not be drawn"):
            write_curves(run.folder, rows, run.name)
            return True
    return False


def _print_summary(rows: list[Row]) -> None:
    if rows:
        with noted("the summary could not be printed"):
            print(format_summary(rows))


def _how_to_resume(run: Run) -> str:
    # If the storage fails now, assume that the run was already stored.
    with suppress(UsageError):
        if not run.was_started():
            return "Training had not started: there is nothing to resume."
        if run.is_finished():
            return f"All epochs are done. Complete the run folder with: {run.resume_command()}"
    return f"Resume from the newest checkpoint with: {run.resume_command()}"
