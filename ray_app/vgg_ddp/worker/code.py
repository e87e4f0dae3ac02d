"""Check that all workers run the driver's code."""

import logging

from vgg_ddp.job import RefusedError
from vgg_ddp.machine.code import Code
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
                f"{driver.folder} on {driver.host}: use the same version on all machines."
            )
    if here.digest != driver.digest:
        logger.warning("Files in %s changed since the command started: the workers run the new code.", here.folder)
