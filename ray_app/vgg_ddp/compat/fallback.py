"""Log one line for each private API that the installed version of a library does not have."""

import functools
import logging

logger = logging.getLogger(__name__)


@functools.cache
def log_fallback(api: str, consequence: str) -> None:
    """Log, once per process, that a private API is missing and what the consequence is."""
    logger.warning("%s differs from the versions that this program was tested with: %s.", api, consequence)
