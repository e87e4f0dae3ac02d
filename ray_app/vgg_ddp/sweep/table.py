"""The trials of a sweep as lines of a table."""

from collections.abc import Sequence

from vgg_ddp.run.summary import format_share
from vgg_ddp.search_space import Parameter, format_value
from vgg_ddp.sweep.trials import Trial

# The longest state.
STATE_WIDTH = len("stopped early")


class Table:
    """Lines of equal width: the trial, its state, epoch, and validation accuracy, and the values of the settings."""

    def __init__(self, sweep_name: str, epochs: int, space: Sequence[Parameter]) -> None:
        self._epochs = epochs
        self._names = [parameter.name for parameter in space]
        self._width = len(sweep_name) + len("-000")
        self._widths = [max(10, len(name)) for name in self._names]

    def heading(self) -> str:
        names = [name.replace("_", "-") for name in self._names]
        return self._line("trial", "state", "epoch", "validation", names)

    def row(self, trial: Trial) -> str:
        values = [_short(trial.point[name]) for name in self._names]
        epoch = f"{trial.epoch}/{self._epochs}"
        line = self._line(trial.name, trial.state, epoch, format_share(trial.accuracy), values)
        return f"{line}  {trial.message}".rstrip()

    def _line(self, name: str, state: str, epoch: str, accuracy: str, values: Sequence[str]) -> str:
        columns = [text.rjust(width) for text, width in zip(values, self._widths, strict=True)]
        return "  ".join(
            [name.ljust(self._width), state.ljust(STATE_WIDTH), f"{epoch:>7}", f"{accuracy:>10}", *columns]
        )


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else format_value(value)
