"""What runs in the process of a trial: an ordinary run, whose metrics of each epoch go to Ray Tune."""

import dataclasses
import math
from typing import Any

from ray import tune
from ray.train import TrainingFailedError
from ray.tune.integration.ray_train import TuneReportCallback

from vgg_ddp.api import train
from vgg_ddp.config import TrainConfig
from vgg_ddp.flags import UsageError
from vgg_ddp.run.notes import reason
from vgg_ddp.sweep.config import METRIC


def run_trial(trial: dict[str, Any], settings: TrainConfig) -> None:
    """Train with the values of a trial, or resume it. The last report says how it ended.

    Errors that a restart would repeat are reported too, because Ray Tune restarts a trial that raises.
    """
    config = dataclasses.replace(settings, run_name=trial["name"], **trial["point"])
    last = {"epoch": 0, METRIC: math.nan}
    try:
        result = train(config, callbacks=[TuneReportCallback()])
    except (UsageError, TrainingFailedError) as error:
        tune.report(last | {"ended": "failed", "message": reason(error)})
        return
    if result.rows:
        # A run that was finished before has reported nothing in this process.
        last = result.rows[-1]
    tune.report(last | {"ended": result.ended, "message": result.message})
