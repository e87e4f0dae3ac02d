"""The driver: check everything that can be checked early, start the workers, report the outcome."""

import signal
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

from vgg_ddp.config import TrainConfig
from vgg_ddp.data.columns import ColumnNames
from vgg_ddp.data.layout import MissingFolderError
from vgg_ddp.data.source import Source, find_source
from vgg_ddp.driver import ray_environment
from vgg_ddp.driver.attempt import Attempt, announce, with_batch_size
from vgg_ddp.driver.background import in_background
from vgg_ddp.driver.conclude import conclude, finished_before, interrupted, of_outcome
from vgg_ddp.driver.inputs import load, settle_data
from vgg_ddp.flags import UsageError
from vgg_ddp.job import Outcome
from vgg_ddp.machine import torchrun
from vgg_ddp.machine.environment import check_ray_settings
from vgg_ddp.observe.mlflow import recorded, require_mlflow
from vgg_ddp.result import RunResult
from vgg_ddp.run.lock import ChangedError, locked, require_unchanged
from vgg_ddp.run.runs import Run, open_run, require_writable

if TYPE_CHECKING:
    from ray.train import UserCallback


def launch(
    config: TrainConfig,
    arguments: Sequence[str],
    started_at: float,
    callbacks: "Sequence[UserCallback]" = (),
    show_bar: bool = True,
) -> RunResult:
    """Train as the flags specify, and print the progress and the outcome.

    Args:
        config: the settings.
        arguments: the flags that were given, which the settings of a run to resume must not contradict.
        started_at: when the command started, in seconds since 1970.
        callbacks: Ray Train callbacks of the user.
        show_bar: show a progress bar on a terminal.

    Raises:
        UsageError: if the input is invalid.
    """
    torchrun.check_numbers()
    run = open_run(config, arguments)
    if run.config.num_workers and torchrun.is_launcher():
        raise UsageError(f"--num-workers {run.config.num_workers}: torchrun has started the workers; omit this flag.")
    torchrun.check_variables(run.config.num_workers)
    check_ray_settings(starts_cluster=run.config.num_workers != 0)
    if run.config.device == "cpu":
        run = replace(run, config=run.config.with_workers(run.config.workers_on_cpus))
    if run.exists and run.is_finished():
        return finished_before(run)
    phases = {"command": started_at, "flags read": time.time()}
    source = _find_data(run)
    run = replace(run, config=settle_data(run.config, source))
    require_mlflow(run.config.mlflow)
    require_writable(run)
    try:
        with locked(run) as run:
            require_unchanged(run)
            # Decoding takes about as long as starting Ray and importing torch, so they run at the same time.
            return _train(Attempt(run, in_background(lambda: load(run, source)), phases, callbacks, show_bar))
    except ChangedError:
        if torchrun.world_size() > 1:
            # The other ranks have settings that may differ now.
            raise UsageError(f"another command has used run {run.name} meanwhile: start this one again.") from None
        return launch(config, arguments, started_at, callbacks, show_bar)


def _train(attempt: Attempt) -> RunResult:
    config = attempt.run.config
    if config.num_workers == 0:
        return _train_in_this_process(attempt)
    address = ray_environment.prepare(config.address, config.ingest == "stream", config.min_workers is not None)
    from vgg_ddp.driver.on_cluster import train_on_cluster

    return train_on_cluster(attempt, address)


def _find_data(run: Run) -> Source:
    """The source of a run's images.

    Raises:
        UsageError: if there is none.
    """
    config = run.config
    try:
        return find_source(config.data, config.data_dir, ColumnNames(config.image_column, config.label_column))
    except MissingFolderError as error:
        if run.recorded_images() is None:
            raise
        raise UsageError(f"{error} If the data was moved, add --data with its new location.") from error


def _train_in_this_process(attempt: Attempt) -> RunResult:
    from vgg_ddp.driver.local import choose_device, train_locally

    run, is_first = attempt.run, torchrun.is_rank_zero()
    use_gpu = choose_device(run.config)
    inputs = attempt.wait_for_inputs()
    run = with_batch_size(run, inputs.dataset, torchrun.world_size())
    if is_first:
        announce(run, inputs.dataset)
    with recorded(run) if is_first else nullcontext():
        try:
            outcome = train_locally(replace(attempt, run=run), inputs, use_gpu)
            if is_first:
                return conclude(run, outcome)
        except KeyboardInterrupt:
            # Only rank 0 reliably knows the name of the run.
            if is_first:
                return interrupted(run, signal.SIGINT)
            outcome = Outcome("stopped", signal_number=signal.SIGINT)
        return of_outcome(run, outcome, [])
