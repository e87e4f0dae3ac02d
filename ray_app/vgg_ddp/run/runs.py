"""Find the run to resume, or name a new one."""

import secrets
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

from vgg_ddp.config import DATA_NAMES, PROGRAM, SCRIPT, TRAJECTORY_FIELDS, TrainConfig
from vgg_ddp.flags import UsageError, flag, parse_flags, setting
from vgg_ddp.machine import torchrun
from vgg_ddp.run.chosen import read_chosen
from vgg_ddp.run.files import CONFIG_FILE, METRICS_FILE, MODEL_FILE, SWEEP_FILE, Row, read_config, read_metrics
from vgg_ddp.run.notes import noted, print_note_once
from vgg_ddp.run.storage import Folder, absolute, is_checkpoint

Settings = TypeVar("Settings", bound=TrainConfig)

# The entry of chosen.json that identifies the images.
DIGEST = "images"


@contextmanager
def required_to_read(storage_path: str) -> Iterator[None]:
    """Refuse the command if the storage cannot be read within this context.

    Raises:
        UsageError: if the storage fails, or if its location or what it holds is invalid.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        raise UsageError(f"--storage-path {storage_path} cannot be read: {error}") from error


@dataclass(frozen=True)
class Run:
    """A run, its settings, and whether an earlier command started it."""

    config: TrainConfig
    name: str
    folder: Folder
    exists: bool

    def is_finished(self) -> bool:
        """Whether all epochs are done and the model is from the last one, not left over from a lower --epochs.

        Raises:
            UsageError: if that cannot be found out.
        """
        rows: list[Row] = []
        # Without its metrics, a run counts as unfinished: the newest checkpoint knows whether it is.
        with noted(f"{self.folder / METRICS_FILE} cannot be read"):
            rows = read_metrics(self.folder)
        with required_to_read(self.config.storage_path):
            is_done = bool(rows) and rows[-1]["epoch"] >= self.config.epochs and self.folder.exists(MODEL_FILE)
            return is_done and self.folder.changed_ns(MODEL_FILE) >= self.folder.changed_ns(METRICS_FILE)

    def was_started(self) -> bool:
        """Whether there is anything to resume.

        Raises:
            UsageError: if that cannot be found out.
        """
        with required_to_read(self.config.storage_path):
            return self.folder.exists(CONFIG_FILE)

    def has_checkpoint(self) -> bool:
        return self.exists and any(map(is_checkpoint, self.folder.names()))

    def recorded_images(self) -> str | None:
        """The digest of the images that the run was trained on, if it exists and recorded it: then they may move."""
        return read_chosen(self.folder).get(DIGEST) if self.exists else None

    def require_same_images(self, digest: str) -> None:
        """Check that a run to resume was trained on images of this digest.

        Raises:
            UsageError: if it was trained on others.
        """
        if self.recorded_images() not in (None, digest):
            raise UsageError(
                f"--data {self.config.data}: run {self.name} was trained on other images; use the data that it was "
                "started with, or another --run-name for a new run."
            )

    def resume_command(self) -> str:
        """The command that resumes this run from the same working directory."""
        program = torchrun.command(SCRIPT) if torchrun.is_launcher() else PROGRAM
        return resume_command(program, self.name, self.config.storage_path)


def resume_command(program: str, name: str, storage_path: str) -> str:
    """The command of a program that resumes what has this name, from the same working directory."""
    is_default = absolute(storage_path) == absolute(TrainConfig.storage_path)
    storage = "" if is_default else f" --storage-path {shlex.quote(storage_path)}"
    return f"{program} --resume {name}{storage}"


def open_run(config: TrainConfig, arguments: Sequence[str]) -> Run:
    """Find the run that the flags name, or name a new one. Writes nothing.

    Raises:
        UsageError: if the run to resume does not exist, or was started with settings that conflict with the flags.
    """
    config = with_absolute_paths(config)
    name = config.resume or config.run_name or new_name("vgg11")
    with required_to_read(config.storage_path):
        folder = Folder.at(config.storage_path) / name
        saved = read_config(folder)
        is_sweep = folder.exists(SWEEP_FILE)
    if is_sweep and config.resume:
        raise UsageError(f"--resume {name}: {name} is a sweep; resume it with tune.py.")
    if is_sweep:
        raise UsageError(f"--run-name {name}: {folder} is a sweep, not a run; use another name.")
    if saved is None:
        if config.resume:
            raise UsageError(f"--resume {name}: no run of that name in --storage-path {config.storage_path}.")
        config.check_combinations()
        if torchrun.may_restart() and not config.run_name:
            raise UsageError(
                "torchrun's --max-restarts requires --run-name, so that restarted processes can find the run."
            )
        return Run(config.with_recipe(), name, folder, exists=False)
    if saved.get("compile"):
        print_note_once(f"run {name} was started with --compile, which this program no longer has: it is not compiled")
    started_with = TrainConfig.from_dict(saved).with_recipe()
    # The saved settings become the defaults of flags that are not given.
    defaults = replace(started_with, storage_path=config.storage_path, run_name=None, resume=None)
    config = with_absolute_paths(parse_flags(TrainConfig, arguments, PROGRAM, defaults))
    config = keep_choices(config, started_with)
    # Data may have been moved: once its files are read, their digest shows whether the images are the same.
    may_move = DIGEST in read_chosen(folder)
    for field in TRAJECTORY_FIELDS:
        if field == "data" and may_move:
            continue
        given, before = getattr(config, field), getattr(started_with, field)
        if given != before:
            raise UsageError(
                f"{_described(field, given)}: run {name} was started with {_described(field, before)}; omit the flag "
                "to resume, or use another --run-name for a new run."
            )
    _expect_even_split(config, name)
    config.check_combinations()
    return Run(config, name, folder, exists=True)


def _described(field: str, value: object) -> str:
    return f"no {flag(field)}" if value is None else setting(field, value)


def _expect_even_split(config: TrainConfig, name: str) -> None:
    """Check that the global batch of an existing run splits evenly over the workers of this command."""
    if config.num_workers is None:
        # Checked once the number is known.
        return
    workers = torchrun.world_size() if torchrun.is_launcher() else max(1, config.num_workers)
    batch = config.batch_size
    if batch and config.min_workers is None and batch % workers:
        fitting = [count for count in range(1, batch // config.min_images_per_worker + 1) if batch % count == 0]
        near = [*[count for count in fitting if count < workers][-1:], *[n for n in fitting if n > workers][:1]]
        raise UsageError(
            f"--num-workers {workers}: run {name} has a global batch of {batch} images, which does not split evenly "
            f"over {workers} workers: use {' or '.join(map(str, near))}."
        )


def keep_choices(config: Settings, started_with: TrainConfig) -> Settings:
    """The settings, in which auto is what it was when the run started."""
    for field in ("data", "ingest"):
        if getattr(config, field) == "auto":
            config = replace(config, **{field: getattr(started_with, field)})
    return config


def new_name(prefix: str) -> str:
    """A prefix with the date and time, plus random digits in case two runs start in the same second."""
    return f"{prefix}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def with_absolute_paths(config: Settings) -> Settings:
    """The settings with absolute paths, because a run may be resumed from another working directory."""
    data = config.data if config.data in DATA_NAMES else absolute(config.data)
    init_from = absolute(config.init_from) if config.init_from else None
    return replace(
        config,
        data=data,
        init_from=init_from,
        data_dir=absolute(config.data_dir),
        storage_path=absolute(config.storage_path),
    )


def require_writable(run: Run) -> None:
    """Create the storage folder and check that a file can be written there.

    Raises:
        UsageError: if this fails.
    """
    root = Folder.at(run.config.storage_path)
    marker = f".writable-{run.name}"
    try:
        root.filesystem.create_dir(root.path, recursive=True)
        root.try_to_write(marker)
    except OSError as error:
        raise UsageError(f"--storage-path {run.config.storage_path} cannot be written: {error}") from error
