"""What each worker runs: resume, then train epoch by epoch. The same under Ray Train and torchrun."""

import logging
import os
import time
from collections.abc import Callable
from typing import TypeVar

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist

from vgg_ddp import checkpoint
from vgg_ddp.hardware import choose_precision
from vgg_ddp.report import write_config, write_metrics, write_model
from vgg_ddp.storage import Folder
from vgg_ddp.worker import Job, Outcome, Worker

T = TypeVar("T")


def train_loop(settings: dict[str, Job]) -> Outcome:
    """Train on this worker, together with the others, until the last epoch or a common decision to stop."""
    job = settings["job"]
    phases = job.phases | {"workers started": time.time()}
    if not job.is_local:
        # Ray logs every report in full at this level, to a logger outside its own hierarchy.
        logging.getLogger().setLevel(logging.WARNING)
    context = ray.train.get_context()
    device = ray.train.torch.get_device() if job.use_gpu else torch.device("cpu")
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // context.get_local_world_size()))
    dataset = ray.get(job.dataset) if isinstance(job.dataset, ray.ObjectRef) else job.dataset
    run, precision, newest = from_rank_zero(lambda: _start(job, device))
    worker = Worker(job, dataset, run, precision, device, context.get_world_rank(), context.get_world_size())
    phases["model built"] = time.time()
    outcome = worker.resume(newest) if newest else None
    worker.phases = phases
    if not outcome and context.get_world_rank() == 0:
        write_config(run, job.config.to_dict())
    while not outcome and len(worker.progress.rows) < job.config.epochs:
        outcome = worker.train_epoch()
    worker.saver.wait()
    if not outcome and context.get_world_rank() == 0:
        write_metrics(run, worker.progress.rows)
        preprocessing = {"image_size": job.config.image_size, "mean": dataset.mean, "std": dataset.std}
        write_model(run, worker.replica.module.state_dict(), dataset.class_names, preprocessing)
    return outcome or Outcome("finished", step=worker.progress.step)


def _start(job: Job, device: torch.device) -> tuple[Folder, str, str | None]:
    """What rank 0 decides for all: the run folder, the precision, and the checkpoint to resume from."""
    assert job.run is not None
    newest = checkpoint.read_newest(job.run)
    if newest is None:
        return job.run, choose_precision(job.config.precision, device), None
    # A resumed run keeps its precision, whatever machine it finds itself on.
    name, state = newest
    return job.run, state["precision"], name


def from_rank_zero(decide: Callable[[], T]) -> T:
    """Call a function on rank 0 and give all ranks its result. A collective."""
    if not dist.is_initialized():
        return decide()
    decided = [decide() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(decided)
    return decided[0]  # type: ignore[return-value]
