"""The end of a sweep: the table of all trials, the picture, and the command that trains with the best settings."""

import math
import shlex

from vgg_ddp.config import PROGRAM, TrainConfig
from vgg_ddp.flags import arguments_of
from vgg_ddp.run.files import read_metrics
from vgg_ddp.run.notes import noted
from vgg_ddp.run.storage import absolute
from vgg_ddp.sweep.picture import PICTURE_FILE, draw_sweep
from vgg_ddp.sweep.sweeps import Sweep
from vgg_ddp.sweep.table import Table
from vgg_ddp.sweep.trials import TRIALS_FILE, Trial, Trials


def conclude(sweep: Sweep, trials: Trials, table: Table) -> int:
    """Print how the sweep ended, draw its picture, and return the exit code: 0 if a trial finished."""
    counts = {state: sum(trial.state == state for trial in trials.all) for state in {t.state for t in trials.all}}
    print(f"\nFinished {sweep.name}: " + ", ".join(f"{count} {state}" for state, count in sorted(counts.items())))
    print(table.heading())
    for trial in sorted(trials.all, key=_rank):
        print(table.row(trial))
    best = trials.best()
    drawn = _draw(sweep, trials, best)
    print(f"\n  trials    {sweep.folder / TRIALS_FILE}")
    if drawn:
        print(f"  picture   {sweep.folder / PICTURE_FILE}")
    if best is None:
        print(f"No trial finished. To try again those that failed: {sweep.resume_command()}", flush=True)
        return 1
    print(f"  best run  {sweep.folder / best.name}")
    print(f"Train with the settings of {best.name} and all training images:\n  {training_command(sweep, best)}")
    if any(trial.state == "failed" for trial in trials.all):
        print(f"To try again the trials that failed: {sweep.resume_command()}")
    return 0


def _rank(trial: Trial) -> tuple[bool, float]:
    """Finished trials first, then by validation accuracy."""
    return trial.state != "finished", math.inf if math.isnan(trial.accuracy) else -trial.accuracy


def training_command(sweep: Sweep, trial: Trial) -> str:
    """The command that trains with the settings of a trial, and with the images that the trial left out."""
    config = sweep.config
    is_default = config.storage_path == absolute(TrainConfig.storage_path)
    all_images = {"validation_fraction": 0.0, "keep_best": False}
    places = {
        # Chosen when the sweep started.
        "ingest": "auto" if config.ingest == "memory" else config.ingest,
        "address": config.address,
        "storage_path": TrainConfig.storage_path if is_default else config.storage_path,
        "data_dir": TrainConfig.data_dir if config.data_dir == absolute(TrainConfig.data_dir) else config.data_dir,
    }
    settings = TrainConfig.from_dict(config.trial_settings().to_dict() | trial.point | all_images | places)
    return f"{PROGRAM} {shlex.join(arguments_of(settings))}"


def _draw(sweep: Sweep, trials: Trials, best: Trial | None) -> bool:
    """Write sweep.png; whether this worked."""
    with noted("the picture could not be drawn"):
        curves = [(trial, read_metrics(sweep.folder / trial.name)) for trial in trials.all]
        if any(rows for _, rows in curves):
            sweep.folder.write(PICTURE_FILE, draw_sweep(curves, best, sweep.name))
            return True
    return False
