"""The settings of a sweep: those of its trials, which are runs of main.py, and its own."""

import dataclasses
from typing import Any, ClassVar, Literal, Self

from vgg_ddp.config import TrainConfig
from vgg_ddp.flags import UsageError, setting
from vgg_ddp.search_space import VALIDATION_FRACTION

PROGRAM = "python ray_app/tune.py"
# The column of metrics.csv by which trials are compared; the higher the better.
METRIC = "validation_accuracy"
NUM_SAMPLES = 10
# A sweep that is resumed must not change other settings than these: its trials could not be compared.
CHANGEABLE = (
    *("num_samples", "max_concurrent", "early_stopping", "run_name", "resume", "storage_path", "data_dir"),
    *("address", "device", "max_failures", "collective_timeout_seconds", "checkpoint_every_seconds"),
    *("mlflow", "profile", "verbose"),
)


@dataclasses.dataclass(frozen=True)
class SweepConfig(TrainConfig):
    """Train with different settings under Ray Tune, and compare the runs by their validation accuracy."""

    POSITIONAL: ClassVar = ("space",)
    GROUPS: ClassVar = TrainConfig.GROUPS | {"space": "sweep"}

    num_workers: int | None = 1
    """Number of DDP workers of each trial."""
    validation_fraction: float = VALIDATION_FRACTION
    """Fraction of the training images that trials leave out of training, and by which they are compared. The test
    images are not used to choose."""
    run_name: str | None = None
    """Name of the sweep, and of its folder in --storage-path; the name of an unfinished sweep resumes it. Default:
    date and time."""
    resume: str | None = None
    """Name of the sweep to resume. Finished trials are not repeated; unfinished ones resume from their newest
    checkpoint."""

    space: tuple[str, ...] = ()
    """Settings to tune: NAME=LOW:HIGH for a range, or NAME=A,B,C for choices. A range that spans a factor of ten or
    more is searched on a logarithmic scale."""
    num_samples: int | None = None
    """Number of trials. Default: 10, or with --search grid, one per combination of choices."""
    search: Literal["random", "grid", "optuna"] = "random"
    """random: random values. grid: all combinations of choices. optuna: values that look promising after the earlier
    trials (requires the package optuna)."""
    early_stopping: bool = True
    """Stop trials that fall behind the others in validation accuracy (ASHA)."""
    max_concurrent: int | None = None
    """Maximum number of trials at the same time. Default: as many as fit in the cluster."""

    def __post_init__(self) -> None:
        """Check every value that can be checked without inspecting the machine.

        Raises:
            UsageError: naming the flag, what was given and what was expected.
        """
        super().__post_init__()
        self._expect("num_workers", self.num_workers != 0, "at least 1, since trials always train under Ray")
        if self.min_workers is not None:
            raise UsageError("--min-workers does not apply to a sweep: its trials share the cluster.")
        fraction = self.validation_fraction
        self._expect("validation_fraction", fraction > 0, "more than 0, since trials are compared by these images")
        for name in ("num_samples", "max_concurrent"):
            value = getattr(self, name)
            self._expect(name, value is None or value >= 1, "a positive number")
        if self.search == "grid" and self.num_samples is not None:
            raise UsageError("--num-samples does not apply to --search grid, which tries every combination once.")

    @property
    def num_trials(self) -> int:
        """The number of trials, except of a grid."""
        return self.num_samples or NUM_SAMPLES

    def trial_settings(self) -> TrainConfig:
        """The settings that all trials share."""
        return TrainConfig.from_dict(self.to_dict() | {"run_name": None, "resume": None, "address": None})

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build the settings from saved values, as `TrainConfig.from_dict` does."""
        return super().from_dict(values | {"space": tuple(values.get("space", ()))})

    def expect_same(self, started_with: "SweepConfig", name: str) -> None:
        """Check that these settings may resume a sweep that was started with others.

        Raises:
            UsageError: naming the flag that must not change.
        """
        for field in dataclasses.fields(self):
            given, before = getattr(self, field.name), getattr(started_with, field.name)
            if given == before or field.name in CHANGEABLE:
                continue
            if field.name == "space":
                raise UsageError(
                    f"{' '.join(given)}: sweep {name} was started with {' '.join(before)}; omit the search space to "
                    "resume it, or use another --run-name."
                )
            raise UsageError(
                f"{setting(field.name, given)}: sweep {name} was started with {setting(field.name, before)}; omit the "
                "flag to resume it, or use another --run-name for a new sweep."
            )
