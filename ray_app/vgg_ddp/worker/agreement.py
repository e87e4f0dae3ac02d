"""Check that all workers have the driver's code, images, and storage; agree on how the run starts."""

import logging
import os
from dataclasses import dataclass

import ray.util
import torch
import torch.distributed as dist

from vgg_ddp.job import Inputs, Job, RefusedError, TakenOverError
from vgg_ddp.machine.code import Code
from vgg_ddp.machine.precision import choose_precision
from vgg_ddp.run import checkpoint
from vgg_ddp.run.lease import LeaseLostError
from vgg_ddp.run.storage import Folder
from vgg_ddp.worker.ddp import from_all_ranks, from_rank_zero

logger = logging.getLogger(__name__)


def require_same_code(driver_code: Code) -> None:
    """Check that every rank runs the driver's code. A collective.

    If the files of the driver's own copy changed since the command started, that is only logged: the workers may have
    been restarted while someone edits the code.

    Raises:
        RefusedError: on all ranks, if another copy of the code differs.
    """
    # Under torchrun, each process is its own driver.
    driver, here = from_rank_zero(lambda: driver_code), Code.of_this_process()
    for rank, copy in enumerate(from_all_ranks(here)):
        if copy.digest != driver.digest and (copy.host, copy.folder) != (driver.host, driver.folder):
            raise RefusedError(
                f"rank {rank} runs the code in {copy.folder} on {copy.host}, which differs from the driver's in "
                f"{driver.folder} on {driver.host}: use the same version on all machines. "
                "In a notebook, restart the kernel after you edit the code."
            )
    if here.digest != driver.digest:
        logger.warning("Files in %s changed since the command started: the workers run the new code.", here.folder)


def require_same_images_and_storage(job: Job, inputs: Inputs) -> None:
    """Check that every rank has the same images and reaches the driver's storage. A collective.

    Raises:
        RefusedError: on all ranks, if that is not so.
    """
    is_blind = job.lock_file is not None and not os.path.isfile(job.lock_file)
    images = f"{inputs.dataset.name}, {inputs.dataset.num_train:,} training images"
    answers = from_all_ranks((images, inputs.digest, ray.util.get_node_ip_address() if is_blind else None))
    if len({(images, digest) for images, digest, _ in answers}) > 1:
        # Each of torchrun's processes loads its own images.
        found = sorted({images for images, _, _ in answers})
        described = "; ".join(found) if len(found) > 1 else f"{found[0]}, but with different content"
        raise RefusedError(f"the workers found different images ({described}): use another --data.")
    blind = sorted({node for _, _, node in answers if node})
    if blind:
        # A folder of that name may exist there; only the lock file proves that it is the same folder.
        assert job.lock_file is not None
        raise RefusedError(
            f"--storage-path {os.path.dirname(job.lock_file)} of the driver is not on {', '.join(blind)}: several "
            "machines need a shared folder (NFS) or a URI such as s3://bucket/runs."
        )


@dataclass(frozen=True)
class Start:
    """How a run starts.

    Attributes:
        newest: name of the checkpoint to resume from; None if there is none.
        state: its content; None if this rank has yet to read it.
    """

    run: Folder
    precision: str
    newest: str | None
    state: checkpoint.State | None


def agree_on_start(job: Job, device: torch.device) -> Start:
    """Rank 0's decisions for all ranks: the run folder, the precision, and the checkpoint to resume from. A collective.

    Raises:
        TakenOverError: on all ranks, if another command has taken the run over.
    """
    read: dict[str, checkpoint.State] = {}
    # Under torchrun, only rank 0 knows the run.
    if job.run and dist.is_initialized() and dist.get_rank() > 0:
        # Read it while rank 0 does, not afterwards.
        read |= checkpoint.peek_newest(job.run)
    start = from_rank_zero(lambda: _decide_start(job, device, read))
    if isinstance(start, LeaseLostError):
        raise TakenOverError(str(start))
    run, precision, newest = start
    return Start(run, precision, newest, read.get(newest) if newest else None)


def _decide_start(
    job: Job, device: torch.device, read: dict[str, checkpoint.State]
) -> tuple[Folder, str, str | None] | LeaseLostError:
    """The run folder, the precision, and the name of the newest checkpoint, whose state is added to `read`."""
    assert job.run is not None
    try:
        if job.run.lease:
            job.run.lease.join()
        newest = checkpoint.read_newest(job.run)
        checkpoint.delete_leftovers(job.run)
    except LeaseLostError as error:
        return error
    if newest is None:
        return job.run, choose_precision(job.config.precision, device), None
    # A resumed run keeps its precision, even on another kind of machine.
    name, state = newest
    read[name] = state
    return job.run, state["precision"], name
