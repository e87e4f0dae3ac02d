"""The driver of a sweep: check everything that can be checked early, run the trials, report the outcome."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import wait
from dataclasses import replace

from vgg_ddp.data.columns import ColumnNames
from vgg_ddp.data.source import SAMPLE_FOLDER, find_source
from vgg_ddp.driver import ray_environment
from vgg_ddp.driver.background import in_background
from vgg_ddp.driver.inputs import settle_data
from vgg_ddp.flags import UsageError
from vgg_ddp.machine import torchrun
from vgg_ddp.machine.environment import check_ray_settings
from vgg_ddp.observe.mlflow import require_mlflow
from vgg_ddp.run.lease import LeaseLostError
from vgg_ddp.run.lock import locked
from vgg_ddp.run.runs import require_writable
from vgg_ddp.run.storage import Folder
from vgg_ddp.sweep.conclude import conclude
from vgg_ddp.sweep.config import SweepConfig
from vgg_ddp.sweep.sweeps import Sweep, open_sweep
from vgg_ddp.sweep.table import Table
from vgg_ddp.sweep.trials import Trials

SECONDS_TO_STOP = 10.0
TUNE_DEFAULTS = {
    # The run folders have everything that Tune would write for each trial.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Tune's newer tables ignore verbose=0.
    "RAY_AIR_NEW_OUTPUT": "0",
    # Relative paths must keep their meaning.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # How long Tune waits for the process of a trial that it has stopped; 600 s by default.
    "TUNE_FORCE_TRIAL_CLEANUP_S": "10",
}


def launch(config: SweepConfig, arguments: Sequence[str]) -> int:
    """Run the sweep that the flags specify, and return the exit code.

    Raises:
        UsageError: if the input is invalid.
    """
    if torchrun.is_launcher():
        raise UsageError("a sweep trains under Ray, not torchrun: start it with python.")
    sweep = open_sweep(config, arguments)
    check_ray_settings(starts_cluster=True)
    config = sweep.config
    source = find_source(config.data, config.data_dir, ColumnNames(config.image_column, config.label_column))
    # Decided now, so that all trials use the same data.
    sweep = replace(sweep, config=settle_data(config, source))
    require_mlflow(config.mlflow)
    require_writable(sweep.as_run())
    with locked(sweep.as_run()) as run:
        sweep = replace(sweep, folder=run.folder)
        trials = sweep.plan()
        table = Table(sweep.name, config.epochs, sweep.space)
        sweep.save()
        print(f"Sweep:     {'resuming ' if sweep.exists else ''}{sweep.folder}")
        print(f"Tuning:    {'; '.join(map(str, sweep.space))}", flush=True)
        if not any(trial.is_waiting for trial in trials.all) and not sweep.num_new(trials):
            return conclude(sweep, trials, table)
        return _run_on_ray(sweep, trials, table)


def _run_on_ray(sweep: Sweep, trials: Trials, table: Table) -> int:
    config = sweep.config
    address = ray_environment.prepare(config.address, config.ingest == "stream")
    for name, value in TUNE_DEFAULTS.items():
        os.environ.setdefault(name, value)
    import ray

    from vgg_ddp.driver import cluster
    from vgg_ddp.driver.signals import InterruptedRunError, interrupt_on_signals, signal_of
    from vgg_ddp.sweep.capacity import trials_at_once
    from vgg_ddp.sweep.progress import Progress
    from vgg_ddp.sweep.tuner import run_trials

    own_cluster = address == ray_environment.LOCAL
    try:
        with interrupt_on_signals():
            # Otherwise, the lines of all trials would be mixed.
            cluster.connect(address, config.verbose, shows_workers=config.verbose)
        placement = cluster.place_workers(config, own_cluster)
        at_once = trials_at_once(config, placement, own_cluster)
        count = sum(trial.state != "skipped" for trial in trials.all) + sweep.num_new(trials)
        kind = "GPU" if placement.use_gpu else "CPU"
        print(
            f"Trials:    {count} of {config.epochs} epochs, {at_once} at a time, {placement.num_workers} {kind} "
            f"worker(s) each\n\n{table.heading()}",
            flush=True,
        )
        settings = sweep.trial_settings()
        if config.data == "sample" and not own_cluster:
            # Ray ships the package without the sample. The trials' own processes are on this machine.
            settings = replace(settings, data=str(SAMPLE_FOLDER))
        call_until_signal(
            lambda stopping: run_trials(sweep, settings, trials, Progress(trials, table, stopping), at_once),
            sweep.folder,
        )
        return conclude(sweep, trials, table)
    except (InterruptedRunError, KeyboardInterrupt) as error:
        number = signal_of(error)
        print(f"\nStopped by {signal.Signals(number).name}. Resume with: {sweep.resume_command()}", flush=True)
        return 128 + number
    except LeaseLostError as error:
        print(f"error: {error}.", file=sys.stderr)
        return 1
    finally:
        ray.shutdown()


def call_until_signal(call: Callable[[threading.Event], object], folder: Folder) -> None:
    """Call a function in another thread and wait for it, keeping this thread free for signals.

    On a signal, or if the lease on the folder is lost, the event that the function gets is set, and it has
    `SECONDS_TO_STOP` to return. It must not use Ray after this function has returned.

    Raises:
        InterruptedRunError: on Ctrl-C, SIGTERM, and, without nohup, SIGHUP.
        LeaseLostError: if the lease is lost.
    """
    from vgg_ddp.driver.signals import InterruptedRunError, SignalWatch, stop_signals

    stopping = threading.Event()
    with SignalWatch(signal.SIGINT, *stop_signals()) as watch:
        future = in_background(lambda: call(stopping))
        while not wait([future], 0.1).done and not watch.received and not folder.lost:
            pass
    if watch.received or folder.lost:
        stopping.set()
        wait([future], SECONDS_TO_STOP)
    if watch.received:
        raise InterruptedRunError(watch.received[0])
    if folder.lost:
        raise LeaseLostError(folder.lost)
    future.result()
