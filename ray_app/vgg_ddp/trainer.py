"""The Ray Train trainer of a run."""

import posixpath

from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from vgg_ddp.storage import Folder
from vgg_ddp.train import Job, train_loop

CONTROLLER_FAILURES = 3


def build_trainer(job: Job, run: Folder, resources_per_worker: dict[str, float]) -> TorchTrainer:
    """A trainer whose workers each run `train_loop` on the job, restarted together when one fails."""
    config = job.config
    storage_path, name = posixpath.split(run.path)
    return TorchTrainer(
        train_loop,
        train_loop_config={"job": job},
        scaling_config=ScalingConfig(
            num_workers=config.num_workers,
            use_gpu=job.use_gpu,
            resources_per_worker=resources_per_worker,
        ),
        run_config=RunConfig(
            name=name,
            storage_path=storage_path,
            storage_filesystem=run.filesystem,
            failure_config=FailureConfig(
                max_failures=config.max_failures,
                # Ray's default restarts a controller that fails for ever.
                controller_failure_limit=CONTROLLER_FAILURES,
            ),
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )
