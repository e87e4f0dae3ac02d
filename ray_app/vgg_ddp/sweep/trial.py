"""What runs in the process of a trial: an ordinary run, whose metrics of each epoch go to Ray Tune."""

import dataclasses
import math
from typing import Any

from ray import tune
from ray.exceptions import RayActorError
from ray.tune.integration.ray_train import TuneReportCallback

from vgg_ddp.api import train
from vgg_ddp.config import TrainConfig
from vgg_ddp.result import RunResult
from vgg_ddp.run.files import Row, read_metrics
from vgg_ddp.run.notes import reason
from vgg_ddp.run.storage import Folder
from vgg_ddp.run.summary import row_to_keep
from vgg_ddp.sweep.config import METRIC


def run_trial(trial: dict[str, Any], settings: TrainConfig) -> None:
    """Train with the values of a trial, or resume it. The last report says how it ended."""
    try:
        config = dataclasses.replace(settings, run_name=trial["name"], **trial["point"])
        for row in read_metrics(Folder.at(config.storage_path) / trial["name"]):
            # Otherwise, the scheduler would compare a later epoch of a resumed trial with earlier ones of the others.
            tune.report(dict(row))
        result = train(config, callbacks=[TuneReportCallback()])
    except RayActorError:
        # A process of the trial died: Ray Tune restarts the trial.
        raise
    except Exception as error:
        # Every exception, because Ray Tune restarts a trial that raises, and does not say why. Ray Train has already
        # restarted what a restart may repair.
        tune.report({"epoch": 0, METRIC: math.nan, "ended": "failed", "message": reason(error)})
        return
    tune.report(last_report(result, config))


def last_report(result: RunResult, config: TrainConfig) -> dict[str, Any]:
    """The last epoch of a run, the accuracy of the weights that it keeps, and how it ended."""
    last: Row = {"epoch": 0, METRIC: math.nan}
    if result.rows:
        last = result.rows[-1] | {METRIC: row_to_keep(result.rows, config)[METRIC]}
    return last | {"ended": result.ended, "message": result.message}
