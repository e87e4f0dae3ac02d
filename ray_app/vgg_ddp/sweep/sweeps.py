"""Find the sweep to resume, or name a new one; plan its trials."""

import dataclasses
import json
from collections.abc import Sequence

from vgg_ddp.config import TrainConfig
from vgg_ddp.flags import UsageError, parse_flags
from vgg_ddp.run.files import CONFIG_FILE, SWEEP_FILE
from vgg_ddp.run.runs import Run, keep_choices, new_name, required_to_read, resume_command, with_absolute_paths
from vgg_ddp.run.storage import Folder, absolute
from vgg_ddp.search_space import Choice, Parameter, corners, draw_points, name_of, parse_space
from vgg_ddp.sweep.config import PROGRAM, SweepConfig
from vgg_ddp.sweep.trials import DONE, Trials

# A grid with more combinations is taken for a mistake.
MAX_TRIALS = 1_000


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A sweep: its settings, its folder, and whether an earlier command started it."""

    config: SweepConfig
    name: str
    folder: Folder
    exists: bool
    space: tuple[Parameter, ...]

    def as_run(self) -> Run:
        """The sweep as a run, to check that its storage can be written, and to lock it."""
        return Run(self.config, self.name, self.folder, self.exists)

    def trial_settings(self) -> TrainConfig:
        """The settings that all trials share. Their run folders are in the folder of the sweep."""
        storage_path = f"{self.config.storage_path.rstrip('/')}/{self.name}"
        return dataclasses.replace(self.config.trial_settings(), storage_path=storage_path)

    def resume_command(self) -> str:
        """The command that resumes this sweep from the same working directory."""
        return resume_command(PROGRAM, self.name, self.config.storage_path)

    def save(self) -> None:
        """Write sweep.json.

        Raises:
            UsageError: if this fails.
        """
        try:
            self.folder.write(SWEEP_FILE, (json.dumps(self.config.to_dict(), indent=2) + "\n").encode())
        except OSError as error:
            raise UsageError(f"{self.folder / SWEEP_FILE} cannot be written: {error}") from error

    def plan(self) -> Trials:
        """All trials that are known: those that an earlier command started, and, except with Optuna, the others."""
        trials = Trials(self.folder, self.name, self.space)
        trials.load()
        if self.config.search != "optuna":
            for point in self._points()[len(trials.all) :]:
                trials.add(point)
        if self.config.search != "grid":
            # --num-samples may be lower than before.
            for trial in trials.all[self.config.num_trials :]:
                trial.state = trial.state if trial.state in DONE else "skipped"
        return trials

    def _points(self) -> list[dict[str, object]]:
        """The values of all trials, which depend only on the settings."""
        if self.config.search == "grid":
            return list(corners(self.space))
        return draw_points(self.space, self.config.num_trials, self.config.seed)

    def num_new(self, trials: Trials) -> int:
        """How many trials Optuna is still to suggest."""
        is_optuna = self.config.search == "optuna"
        return max(0, self.config.num_trials - len(trials.all)) if is_optuna else 0


def open_sweep(config: SweepConfig, arguments: Sequence[str]) -> Sweep:
    """Find the sweep that the flags name, or name a new one. Writes nothing.

    Raises:
        UsageError: if the sweep to resume does not exist or was started with other settings, or the search space is
            invalid.
    """
    name = config.resume or config.run_name or new_name("sweep")
    config = _with_absolute_paths(config)
    folder, is_run = _find_folder(config, name)
    started_with = _read_settings(folder)
    if started_with is None:
        if config.resume and is_run:
            raise UsageError(f"--resume {name}: {name} is a run; resume it with main.py.")
        if config.resume:
            raise UsageError(f"--resume {name}: no sweep of that name in --storage-path {config.storage_path}.")
        if is_run:
            raise UsageError(f"--run-name {name}: {folder} is a run, not a sweep; use another name.")
    else:
        defaults = dataclasses.replace(
            started_with, storage_path=config.storage_path, run_name=None, resume=None, address=None, space=()
        )
        config = _with_absolute_paths(parse_flags(SweepConfig, arguments, PROGRAM, defaults))
        config = dataclasses.replace(config, space=config.space or started_with.space)
        config = keep_choices(config, started_with)
        config.expect_same(started_with, name)
    if not config.space:
        raise UsageError("expected the settings to tune, as in lr=0.02:0.2 or batch-size=128,256. See --help.")
    space = parse_space(config.space, config.trial_settings())
    _check_search(config, space)
    return Sweep(config, name, folder, started_with is not None, space)


def _find_folder(config: SweepConfig, name: str) -> tuple[Folder, bool]:
    """The folder of a sweep, and whether it is that of a run instead.

    Raises:
        UsageError: if this cannot be known.
    """
    with required_to_read(config.storage_path):
        folder = Folder.at(config.storage_path) / name
        return folder, folder.exists(CONFIG_FILE)


def _read_settings(folder: Folder) -> SweepConfig | None:
    """The settings in sweep.json; None if there is no sweep.

    Raises:
        UsageError: if they cannot be read.
    """
    try:
        if not folder.exists(SWEEP_FILE):
            return None
        return SweepConfig.from_dict(json.loads(folder.read(SWEEP_FILE)))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UsageError(f"{folder / SWEEP_FILE} cannot be read: {error}") from error


def _check_search(config: SweepConfig, space: Sequence[Parameter]) -> None:
    """Check that the search algorithm fits the search space, and is installed.

    Raises:
        UsageError: if it does not.
    """
    if config.search == "optuna":
        from importlib.util import find_spec

        if find_spec("optuna") is None:
            raise UsageError("--search optuna requires the package optuna: pip install optuna")
    if config.search != "grid":
        return
    combinations = 1
    for parameter in space:
        if not isinstance(parameter, Choice):
            raise UsageError(
                f"--search grid: {parameter.name.replace('_', '-')} is a range; expected choices, as in "
                "lr=0.05,0.1,0.2."
            )
        combinations *= len(parameter.values)
    if combinations > MAX_TRIALS:
        raise UsageError(f"--search grid: {combinations:,} combinations; use fewer choices, or --search random.")


def _with_absolute_paths(config: SweepConfig) -> SweepConfig:
    """The settings with absolute paths, also those in the search space."""
    return dataclasses.replace(with_absolute_paths(config), space=tuple(map(_with_absolute_choices, config.space)))


def _with_absolute_choices(text: str) -> str:
    """An argument of the search space; if its choices are paths, with absolute ones."""
    if name_of(text) != "init_from":
        return text
    name, equals, values = text.partition("=")
    return name + equals + ",".join(absolute(value) if value else value for value in values.split(","))
