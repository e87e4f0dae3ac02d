"""Check that all workers run the driver's code."""

import logging

from vgg_ddp.job import RefusedError
from vgg_ddp.machine.code import Code
from vgg_ddp.worker.ddp import from_all_ranks

logger = logging.getLogger(__name__)


def require_same_code(driver: Code) -> None:
    """Check that every rank runs the driver's code. A collective.

    If the files of the driver's own copy changed since the command started, that is only logged: the workers may have
    been restarted while someone edits the code.

    Raises:
        RefusedError: on all ranks, if another copy of the code differs.
    """
    here = Code.of_this_process()
    # Under torchrun, each process is its own driver.
    copies, (driver, *_) = zip(*from_all_ranks((here, driver)), strict=True)
    for rank, copy in enumerate(copies):
        if copy.digest != driver.digest and (copy.host, copy.folder) != (driver.host, driver.folder):
            raise RefusedError(
                f"rank {rank} runs the code in {copy.folder} on {copy.host}, which differs from the driver's in "
                f"{driver.folder} on {driver.host}: use the same version on all machines."
            )
    if here.digest != driver.digest:
        logger.warning("Files in %s changed since the command started: the workers run the new code.", here.folder)
