"""The Ray Train trainer of a run."""

import dataclasses
import math
import posixpath
from collections.abc import Sequence
from typing import Any

import pandas as pd
from ray.train import Checkpoint, FailureConfig, LoggingConfig, Result, RunConfig, ScalingConfig, UserCallback

from vgg_ddp.compat.ray_train import LeanTrainer, torch_config
from vgg_ddp.job import Job
from vgg_ddp.run import checkpoint
from vgg_ddp.run.files import METRICS_FILE, read_metrics
from vgg_ddp.run.notes import noted
from vgg_ddp.run.storage import Folder
from vgg_ddp.worker.failures import FailureReporter
from vgg_ddp.worker.train import train_loop

CONTROLLER_FAILURES = 3
# After losing a machine, an elastic run requests it every 10 s until Ray notices; each attempt counts as a failure.
ELASTIC_CONTROLLER_FAILURES = 600
# A resize restarts the workers from the newest checkpoint, so resizes must be rare.
SECONDS_BETWEEN_RESIZE_CHECKS = 30.0


class RunTrainer(LeanTrainer):
    """A trainer whose `Result` has the metrics and the newest checkpoint of the run folder.

    Ray's own result would lack them, because no checkpoint is registered with Ray (see `run/saver.py`).
    """

    def __init__(self, *arguments: Any, run: Folder, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._run = run

    def fit(self) -> Result:
        """Train, and return Ray's result with the metrics of all epochs, including those before a resume."""
        result = super().fit()
        with noted(f"{self._run / METRICS_FILE} cannot be read"):
            rows = read_metrics(self._run)
            newest = checkpoint.newest_complete(self._run)
            return dataclasses.replace(
                result,
                path=str(self._run),
                metrics=rows[-1] if rows else None,
                metrics_dataframe=pd.DataFrame(rows),
                checkpoint=Checkpoint((self._run / newest).path, self._run.filesystem) if newest else None,
            )
        return result


def build_trainer(
    job: Job,
    run: Folder,
    resources_per_worker: dict[str, float],
    own_cluster: bool,
    callbacks: Sequence[UserCallback] = (),
    worker_environment: dict[str, str] | None = None,
) -> RunTrainer:
    """A trainer whose workers each run `train_loop` on the job, restarted together when one fails."""
    config = job.config
    assert config.num_workers is not None
    storage_path, name = posixpath.split(run.path)
    return RunTrainer(
        train_loop,
        run=run,
        own_cluster=own_cluster,
        train_loop_config={"job": job},
        torch_config=torch_config(math.ceil(config.collective_timeout_seconds)),
        scaling_config=ScalingConfig(
            num_workers=(config.min_workers, config.num_workers) if config.min_workers else config.num_workers,
            elastic_resize_monitor_interval_s=SECONDS_BETWEEN_RESIZE_CHECKS,
            use_gpu=job.use_gpu,
            resources_per_worker=resources_per_worker,
        ),
        run_config=RunConfig(
            name=name,
            storage_path=storage_path,
            storage_filesystem=run.filesystem,
            failure_config=FailureConfig(
                max_failures=config.max_failures,
                # By default, Ray restarts a failing controller forever.
                controller_failure_limit=ELASTIC_CONTROLLER_FAILURES if config.min_workers else CONTROLLER_FAILURES,
            ),
            logging_config=LoggingConfig(log_level="INFO" if config.verbose else "WARNING"),
            callbacks=[FailureReporter(config.max_failures), *callbacks],
            worker_runtime_env={"env_vars": worker_environment or {}},
        ),
    )
