"""The Ray Train trainer of a run."""

import logging
import math
import posixpath
from typing import Any, ClassVar

from ray.exceptions import RayError
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

from vgg_ddp.failures import FailureReporter
from vgg_ddp.job import Job
from vgg_ddp.storage import Folder
from vgg_ddp.train import train_loop

logger = logging.getLogger(__name__)

CONTROLLER_FAILURES = 3
# An elastic run that loses a machine asks for it in vain at first, every 10 s, which counts as such a failure.
ELASTIC_CONTROLLER_FAILURES = 600
# A resize restarts the workers from the newest checkpoint: rarely enough not to do so all the time.
SECONDS_BETWEEN_RESIZE_CHECKS = 30.0


class TolerantBackend(TorchConfig().backend_cls):  # type: ignore[misc]
    """Ray's set-up of the process group, which may also be shut down after workers were killed for memory.

    Ray 2.60 expects dead workers there, but takes the error that tells of this death for a failure of its controller,
    and ends the run.
    """

    def on_shutdown(self, worker_group: Any, backend_config: TorchConfig) -> None:
        try:
            super().on_shutdown(worker_group, backend_config)
        except RayError as error:
            logger.debug("The process group could not be shut down: %s", error)


class TolerantTorchConfig(TorchConfig):  # type: ignore[misc]
    """Ray's settings of the process group, with `TolerantBackend`."""

    @property
    def backend_cls(self) -> type[TolerantBackend]:
        return TolerantBackend


class LeanTrainer(TorchTrainer):  # type: ignore[misc]
    """Ray's trainer without the actor that manages Ray Train's datasets, of which there are none.

    It would take seconds of a core to start, and 1 % of one from then on.
    """

    needless: ClassVar[tuple[type, ...]] = (DatasetsCallback,)

    def _create_default_callbacks(self) -> list[Any]:
        return [callback for callback in super()._create_default_callbacks() if not isinstance(callback, self.needless)]


class LeanestTrainer(LeanTrainer):
    """For a cluster that ends with the run: also without the actor that would clean up after a controller's death."""

    needless = (DatasetsCallback, PlacementGroupCleanerCallback)


def build_trainer(job: Job, run: Folder, resources_per_worker: dict[str, float], own_cluster: bool) -> TorchTrainer:
    """A trainer whose workers each run `train_loop` on the job, restarted together when one fails."""
    config = job.config
    storage_path, name = posixpath.split(run.path)
    trainer = LeanestTrainer if own_cluster else LeanTrainer
    return trainer(
        train_loop,
        train_loop_config={"job": job},
        torch_config=TolerantTorchConfig(timeout_s=math.ceil(config.collective_timeout_seconds)),
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
                # Ray's default restarts a controller that fails for ever.
                controller_failure_limit=ELASTIC_CONTROLLER_FAILURES if config.min_workers else CONTROLLER_FAILURES,
            ),
            logging_config=LoggingConfig(log_level="INFO" if config.verbose else "WARNING"),
            callbacks=[FailureReporter(config.max_failures)],
        ),
    )
