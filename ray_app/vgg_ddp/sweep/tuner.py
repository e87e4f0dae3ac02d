"""Run the trials of a sweep with Ray Tune."""

import logging
import tempfile
from types import SimpleNamespace
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from vgg_ddp.config import TrainConfig
from vgg_ddp.run.files import read_metrics
from vgg_ddp.run.notes import noted
from vgg_ddp.sweep.config import METRIC, SweepConfig
from vgg_ddp.sweep.progress import Progress
from vgg_ddp.sweep.search import TrialSearch, optuna_sampler
from vgg_ddp.sweep.sweeps import Sweep
from vgg_ddp.sweep.trial import run_trial
from vgg_ddp.sweep.trials import DONE, Trials

# How often a trial is restarted whose own process died. Failures of its workers are counted by --max-failures.
RESTARTS = 3
# Trials are compared after a quarter of their epochs, then each time they have trained three times as long; the best
# third trains on.
FIRST_COMPARISON = 0.25
REDUCTION_FACTOR = 3


def run_trials(sweep: Sweep, settings: TrainConfig, trials: Trials, progress: Progress, at_once: int) -> None:
    """Run all trials that are not done with these settings besides their own, and wait for them."""
    if not sweep.config.verbose:
        # Also errors: a trial that fails is in the table.
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    remaining = sum(trial.is_waiting for trial in trials.all) + sweep.num_new(trials)
    sampler = None
    if sweep.config.search == "optuna":
        # With the same seed, a sweep that is resumed would start with the same suggestions.
        seed = sweep.config.seed + len(trials.all)
        sampler = optuna_sampler(sweep.space, seed, sweep.config.verbose)
    # Tune's own records are not needed afterwards: a sweep resumes from trials.csv and the run folders.
    with tempfile.TemporaryDirectory(prefix="vgg-sweep-", ignore_cleanup_errors=True) as folder:
        tune.Tuner(
            tune.with_resources(tune.with_parameters(run_trial, settings=settings), _beside_this_process()),
            tune_config=tune.TuneConfig(
                search_alg=TrialSearch(trials, sweep.space, sampler),
                scheduler=_scheduler(sweep, trials),
                num_samples=remaining,
                max_concurrent_trials=at_once,
            ),
            run_config=tune.RunConfig(
                name=sweep.name,
                storage_path=folder,
                failure_config=tune.FailureConfig(max_failures=RESTARTS),
                callbacks=[progress],
                verbose=0,
            ),
        ).fit()


def _beside_this_process() -> dict[str, float]:
    """The resources of a trial's own process: no CPU, which its workers need, and this machine, which has the data."""
    node = ray.get_runtime_context().get_node_id()
    (address,) = [info["NodeManagerAddress"] for info in ray.nodes() if info["NodeID"] == node]
    return {"CPU": 0, f"node:{address}": 0.001}


def _scheduler(sweep: Sweep, trials: Trials) -> TrialScheduler:
    config = sweep.config
    if not config.early_stopping or config.epochs == 1:
        return FIFOScheduler()
    scheduler = ASHAScheduler(
        time_attr="epoch",
        metric=METRIC,
        mode="max",
        # After the last epoch, there is nothing to save by stopping.
        max_t=config.epochs - 1,
        stop_last_trials=False,
        grace_period=grace_period(config),
        reduction_factor=REDUCTION_FACTOR,
    )
    for trial in trials.all:
        if trial.state in DONE:
            _replay(scheduler, trial.name, sweep)
    return scheduler


def grace_period(config: SweepConfig) -> int:
    """The number of epochs after which trials are compared for the first time."""
    return max(1, min(config.epochs - 1, round(config.epochs * FIRST_COMPARISON)))


def _replay(scheduler: Any, name: str, sweep: Sweep) -> None:
    """Tell the scheduler how good a trial was that an earlier command ran."""
    trial = SimpleNamespace(trial_id=name)
    with noted(f"the metrics of {name} cannot be read"):
        rows = read_metrics(sweep.folder / name)
        scheduler.on_trial_add(None, trial)
        for row in rows:
            scheduler.on_trial_result(None, trial, row)
