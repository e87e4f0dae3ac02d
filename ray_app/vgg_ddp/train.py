"""What each worker runs: resume, then train epoch by epoch. The same under Ray Train and torchrun."""

import logging
import os
import time
from datetime import timedelta

import ray
import ray.train
import ray.train.torch
import ray.util
import torch
import torch.distributed as dist

from vgg_ddp import checkpoint
from vgg_ddp.allocation import keep_freed_memory
from vgg_ddp.collectives import from_all_ranks, from_rank_zero
from vgg_ddp.data import Dataset
from vgg_ddp.failures import is_consequence
from vgg_ddp.hangs import explain, find_hung_ranks, is_timeout
from vgg_ddp.hardware import choose_precision, processor_name
from vgg_ddp.ingest import Inputs
from vgg_ddp.job import Job, Outcome, Ranks
from vgg_ddp.limits import usable_cores
from vgg_ddp.report import write_config, write_metrics, write_model
from vgg_ddp.storage import Folder
from vgg_ddp.stream import StreamedDataset
from vgg_ddp.worker import Worker


def train_loop(settings: dict[str, Job]) -> Outcome:
    """Train on this worker, together with the others, until the last epoch or a common decision to stop."""
    job = settings["job"]
    phases = job.phases | {"workers started": time.time()}
    if not (job.is_local or job.config.verbose):
        # Ray Train's own print also logs what it prints, to the root logger, and the driver would show it twice.
        logging.getLogger().setLevel(logging.WARNING)
    if job.is_local and dist.is_initialized():
        # Ray's local mode has no setting for it. Before torch 2.14 the function had another name.
        set_timeout = getattr(dist, "set_timeout", None) or dist.distributed_c10d._set_pg_timeout
        set_timeout(timedelta(seconds=job.config.collective_timeout_seconds))
    context = ray.train.get_context()
    device = ray.train.torch.get_device() if job.use_gpu else torch.device("cpu")
    keep_freed_memory()
    torch.set_num_threads(max(1, usable_cores() // context.get_local_world_size()))
    inputs = ray.get(job.inputs) if isinstance(job.inputs, ray.ObjectRef) else job.inputs
    if refusal := _refuse_machines(job, inputs):
        return Outcome("refused", refusal)
    run, precision, newest = from_rank_zero(lambda: _start(job, device))
    if refusal := _refuse_start(job, inputs, precision, newest):
        return Outcome("refused", refusal)
    ranks = Ranks(
        context.get_world_rank(),
        context.get_world_size(),
        context.get_local_world_size(),
        are_alike=len(set(from_all_ranks(processor_name(device)))) == 1,
    )
    worker = Worker(job, inputs, run, precision, device, ranks)
    phases["model built"] = time.time()
    outcome = worker.resume(newest) if newest else None
    worker.phases = phases
    if not (outcome or worker.saver.failure) and context.get_world_rank() == 0:
        worker.saver.keep(lambda: write_config(run, job.config.to_dict()))
    try:
        while not outcome and len(worker.progress.rows) < job.config.epochs:
            outcome = worker.train_epoch()
    except RuntimeError as error:
        if not (dist.is_initialized() and (is_timeout(error) or is_consequence(error))):
            raise
        hung = find_hung_ranks(is_timeout(error))
        if hung is None:
            raise
        raise explain(hung, worker.progress.step, job.config.collective_timeout_seconds) from None
    worker.saver.wait()
    if not (outcome or worker.saver.failure) and context.get_world_rank() == 0:
        worker.saver.keep(lambda: _write_results(worker, inputs.dataset))
    if worker.saver.failure:
        return Outcome("unsaved", worker.saver.failure, worker.progress.step)
    return outcome or Outcome("finished", step=worker.progress.step)


def _refuse_machines(job: Job, inputs: Inputs) -> str | None:
    """Why the machines cannot train together; None if they can. A collective."""
    is_blind = job.claim is not None and not os.path.isfile(job.claim)
    images = f"{inputs.dataset.name}, {inputs.dataset.num_train:,} training images"
    answers = from_all_ranks((images, ray.util.get_node_ip_address() if is_blind else None))
    found = sorted({images for images, _ in answers})
    if len(found) > 1:
        # Each of torchrun's processes looks for itself.
        return f"the workers found different images ({'; '.join(found)}): give another --data."
    blind = sorted({node for _, node in answers if node})
    if blind:
        # A folder of that name may be there: only the file tells that it is the same one.
        assert job.claim is not None
        return (
            f"--storage-path {os.path.dirname(job.claim)} of the driver is not on {', '.join(blind)}: several machines "
            "need a folder that all of them share (NFS), or a URI such as s3://bucket/runs."
        )
    return None


def _refuse_start(job: Job, inputs: Inputs, precision: str, newest: str | None) -> str | None:
    """Why the run cannot begin as it is told to; None if it can."""
    config = job.config
    if newest and config.precision not in ("auto", precision):
        return f"--precision {config.precision}: the run computes in {precision}; leave it out to resume."
    if config.init_from and not (newest or inputs.pretrained):
        return f"no checkpoint of {job.config.run_name or 'the run'} is whole: start anew under another --run-name."
    return None


def _write_results(worker: Worker, dataset: Dataset | StreamedDataset) -> None:
    write_metrics(worker.run, worker.progress.rows)
    preprocessing = {"image_size": worker.config.image_size, "mean": dataset.mean, "std": dataset.std}
    write_model(worker.run, worker.replica.plain_model().state_dict(), dataset.class_names, preprocessing)


def _start(job: Job, device: torch.device) -> tuple[Folder, str, str | None]:
    """What rank 0 decides for all: the run folder, the precision, and the checkpoint to resume from."""
    assert job.run is not None
    newest = checkpoint.read_newest(job.run)
    if newest is None:
        return job.run, choose_precision(job.config.precision, device), None
    # A resumed run keeps its precision, whatever machine it finds itself on.
    name, state = newest
    return job.run, state["precision"], name
