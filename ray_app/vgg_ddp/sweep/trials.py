"""The trials of a sweep and how far they are: trials.csv, from which an interrupted sweep resumes."""

import csv
import dataclasses
import io
import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Literal, get_args

from vgg_ddp.flags import UsageError
from vgg_ddp.run.lease import LeaseLostError
from vgg_ddp.run.notes import noted
from vgg_ddp.run.storage import Folder
from vgg_ddp.search_space import Parameter, Point, format_value, read_value
from vgg_ddp.sweep.config import METRIC

TRIALS_FILE = "trials.csv"
State = Literal["waiting", "running", "finished", "stopped early", "diverged", "failed", "skipped"]
# These are not repeated when the sweep resumes.
DONE: tuple[State, ...] = ("finished", "stopped early", "diverged")


@dataclasses.dataclass
class Trial:
    """A trial: the name of its run, the values of the tuned settings, and how far it is.

    Attributes:
        accuracy: validation accuracy after `epoch`; once the trial has ended, that of the weights that its run keeps;
            nan before the first epoch.
        message: why it failed; empty otherwise.
    """

    name: str
    point: Point
    state: State = "waiting"
    epoch: int = 0
    accuracy: float = math.nan
    message: str = ""

    @property
    def is_waiting(self) -> bool:
        """Whether the sweep is still to run it."""
        return self.state not in (*DONE, "skipped")


class Trials:
    """All trials of a sweep, in the order in which they start."""

    def __init__(self, folder: Folder, sweep_name: str, space: Sequence[Parameter]) -> None:
        self._folder = folder
        self._sweep_name = sweep_name
        self._space = space
        self.all: list[Trial] = []

    def add(self, point: Point) -> Trial:
        """A new trial with these values."""
        trial = Trial(f"{self._sweep_name}-{len(self.all) + 1:03}", point)
        self.all.append(trial)
        return trial

    def named(self, name: str) -> Trial:
        return next(trial for trial in self.all if trial.name == name)

    def best(self) -> Trial | None:
        """The finished trial with the highest validation accuracy. The others have no model."""
        finished = [trial for trial in self.all if trial.state == "finished" and not math.isnan(trial.accuracy)]
        return max(finished, key=lambda trial: trial.accuracy, default=None)

    def save(self) -> None:
        """Write trials.csv. The sweep survives a failure, which costs at most the record of the newest changes."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["trial", *(parameter.name for parameter in self._space), "state", "epoch", METRIC, "message"])
        for trial in self.all:
            values = map(format_value, trial.point.values())
            writer.writerow([trial.name, *values, trial.state, trial.epoch, trial.accuracy, trial.message])
        # A lost lease ends the sweep.
        with noted(f"{self._folder / TRIALS_FILE} cannot be written"), suppress(LeaseLostError):
            self._folder.write(TRIALS_FILE, text.getvalue().encode())

    def load(self) -> None:
        """Read trials.csv, if it exists. Trials that were not done wait again.

        Raises:
            UsageError: if the file cannot be read, or does not fit the search space.
        """
        try:
            text = self._folder.read(TRIALS_FILE).decode()
        except FileNotFoundError:
            return
        except OSError as error:
            raise UsageError(f"{self._folder / TRIALS_FILE} cannot be read: {error}") from error
        try:
            for row in csv.DictReader(io.StringIO(text)):
                trial = self.add({p.name: read_value(p.name, row[p.name]) for p in self._space})
                trial.epoch, trial.accuracy = int(row["epoch"]), float(row[METRIC])
                state: State = next(state for state in get_args(State) if state == row["state"])
                if state in DONE:
                    trial.state, trial.message = state, row["message"]
        except (KeyError, TypeError, ValueError, StopIteration) as error:
            raise UsageError(
                f"{self._folder / TRIALS_FILE} is damaged ({error!r}): restore it, or start a new sweep."
            ) from error
