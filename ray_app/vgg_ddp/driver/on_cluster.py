"""Train on a Ray cluster: connect to it, place the workers, and wait for them."""

import sys
import time
import uuid
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

import ray
from ray.exceptions import RayActorError

from vgg_ddp.compat.ray_data import start_coordinator
from vgg_ddp.compat.ray_variables import WORKER_SETUP
from vgg_ddp.config import TrainConfig
from vgg_ddp.driver import cluster
from vgg_ddp.driver.attempt import Attempt, announce, with_batch_size
from vgg_ddp.driver.cluster import Placement
from vgg_ddp.driver.conclude import conclude, interrupted
from vgg_ddp.driver.launch_failures import printed_launch_failures
from vgg_ddp.driver.ray_environment import INITIALIZED, LOCAL
from vgg_ddp.driver.signals import (
    InterruptedRunError,
    StopFlag,
    call_interruptibly,
    interrupt_on_signals,
    signal_of,
)
from vgg_ddp.job import Inputs, Job, Outcome
from vgg_ddp.machine import malloc
from vgg_ddp.observe.mlflow import recorded
from vgg_ddp.observe.terminal import Follower
from vgg_ddp.result import RunResult
from vgg_ddp.run.lock import lock_file
from vgg_ddp.run.notes import reason

if TYPE_CHECKING:
    from ray.train import TrainingFailedError


def train_on_cluster(attempt: Attempt, address: str) -> RunResult:
    """Train with Ray workers. `address` comes from `ray_environment.prepare`.

    Raises:
        UsageError: if the cluster cannot be used, or does not fit the settings.
    """
    try:
        # Finishing the MLflow record may take a while: the cluster is released first.
        with ExitStack() as afterwards:
            return _train(attempt, address, afterwards)
    except (InterruptedRunError, KeyboardInterrupt) as error:
        return interrupted(attempt.run, signal_of(error))


def _train(attempt: Attempt, address: str, afterwards: ExitStack) -> RunResult:
    run, phases = attempt.run, attempt.phases
    try:
        with interrupt_on_signals():
            dashboard_url = cluster.connect(address, run.config.verbose)
        phases["Ray started"] = time.time()
        start_coordinator()
        placement = cluster.place_workers(run.config, own_cluster=address == LOCAL)
        inputs = attempt.wait_for_inputs()
        run = replace(run, config=run.config.with_workers(placement.num_workers))
        run = with_batch_size(run, inputs.dataset, placement.num_workers)
        afterwards.enter_context(recorded(run))
        announce(run, inputs.dataset)
        if dashboard_url:
            print(f"Dashboard: http://{dashboard_url} (its token: ray get-auth-token)")
        kind = "GPU" if placement.use_gpu else "CPU"
        print(f"Workers:   {placement.num_workers} on {kind}, starting", flush=True)
        with Follower(run, phases["command"], attempt.show_bar), _notes_of_the_autoscaler(address):
            outcome = _fit(replace(attempt, run=run), inputs, placement, address)
        return conclude(run, outcome)
    except (InterruptedRunError, KeyboardInterrupt) as error:
        return interrupted(run, signal_of(error))
    finally:
        if address != INITIALIZED:
            ray.shutdown()


def _notes_of_the_autoscaler(address: str) -> AbstractContextManager[None]:
    return nullcontext() if address == LOCAL else printed_launch_failures()


def _fit(
    attempt: Attempt, inputs: Inputs, placement: Placement, address: str
) -> "Outcome | TrainingFailedError | RayActorError":
    """Train under Ray Train. If the workers or Ray Train's controller failed, print their first exception."""
    # Imported here because torch takes seconds, in which the first processes of Ray start.
    from ray.train import TrainingFailedError

    from vgg_ddp.driver.trainer import build_trainer
    from vgg_ddp.worker.failures import describe, diverged_outcome

    run = attempt.run
    has_spares = _has_spares(run.config, address)
    stop_flag = StopFlag(f"stop-{run.name}-{uuid.uuid4().hex[:8]}")
    job = Job(
        run.config,
        ray.put(inputs),
        run.folder,
        placement.use_gpu,
        is_local=False,
        lock_file=lock_file(run),
        phases=attempt.phases,
        stop_requested=stop_flag.is_raised,
        has_spares=has_spares,
    )
    trainer = build_trainer(
        job,
        run.folder,
        placement.resources_per_worker,
        own_cluster=address == LOCAL,
        callbacks=attempt.callbacks,
        # The processes of other clusters have inherited malloc's settings, or get them from the job.
        worker_environment=(malloc.ENVIRONMENT if address == INITIALIZED else {})
        | (WORKER_SETUP if has_spares else {}),
    )
    try:
        result = call_interruptibly(trainer.fit, stop_flag.raise_flag, is_shared=address == INITIALIZED)
    except TrainingFailedError as error:
        if diverged := diverged_outcome(error):
            return diverged
        failures = getattr(error, "worker_failures", None)
        print(describe(failures) if failures else str(error), file=sys.stderr)
        return error
    except RayActorError as error:
        print(f"error: the process of Ray Train's controller died ({reason(error)})", file=sys.stderr)
        return error
    outcome: Outcome = result.return_value
    return replace(outcome, signal_number=stop_flag.signal_number)


def _has_spares(config: TrainConfig, address: str) -> bool:
    """Whether the workers keep spare processes (`compat/ray_spares.py`)."""
    if not config.spare_workers or (config.max_failures == 0 and config.min_workers is None):
        return False
    # Spare processes end with the job: not where it outlives the run, nor where workers share their runtime environment
    # with the tasks that decode images.
    if address == INITIALIZED or config.ingest == "stream":
        return False
    # Nor where the user has another function that each process calls when it has started.
    of_job = ray.get_runtime_context().runtime_env.get("env_vars", {})
    return not (WORKER_SETUP.keys() & of_job.keys())
