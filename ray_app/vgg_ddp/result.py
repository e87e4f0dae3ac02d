"""The result of a run, for programs that train with `vgg_ddp.train`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    # Imports pyarrow, which `--help` does not need.
    from vgg_ddp.run.files import Row

Ended = Literal["finished", "stopped", "diverged", "unsaved", "failed", "refused"]


@dataclass(frozen=True)
class RunResult:
    """What a run has produced, and how it ended.

    Attributes:
        name: name of the run; `TrainConfig(resume=name)` resumes it.
        folder: path or URI of the run folder.
        ended: "finished"; "stopped" by a signal; "diverged": the loss became nan or infinite; "unsaved": the run folder
            could not be written. If the workers "failed" or "refused" the run, `train` raises an exception instead.
        rows: metrics of the finished epochs, one row each, with the columns of metrics.csv.
        model: path or URI of model.safetensors; None unless the run has finished.
        message: why the run diverged, was refused, or could not be saved.
        signal_number: the signal that stopped the run.
        error: why the workers failed.
    """

    name: str
    folder: str
    ended: Ended
    rows: "list[Row]"
    model: str | None = None
    message: str = ""
    signal_number: int | None = None
    error: Exception | None = None
