"""Find the ranks that made a collective time out."""

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator

import torch.distributed as dist

from vgg_ddp.compat.torch_store import default_store
from vgg_ddp.worker.failures import is_consequence

logger = logging.getLogger(__name__)

# Ranks that wait for the same rank time out almost simultaneously.
SECONDS_TO_ANSWER = 10.0
# A rank that times out closes its connections, then immediately reports that it was waiting.
SECONDS_TO_REPORT = 3.0
SECONDS_BETWEEN_CHECKS = 0.1
# Additional time for a working store to respond.
STORE_SECONDS = 2.0


class HungRankError(Exception):
    """Some ranks did not join a collective in time."""


@contextlib.contextmanager
def hung_ranks_named(timeout_seconds: float, step: Callable[[], int]) -> Iterator[None]:
    """Name the hung ranks if a collective in this context times out.

    Raises:
        HungRankError: instead of the collective's own error, if the hung ranks were found.
    """
    try:
        yield
    except RuntimeError as error:
        if not (dist.is_initialized() and (is_timeout(error) or is_consequence(error))):
            raise
        hung = find_hung_ranks(is_timeout(error))
        if hung is None:
            raise
        raise explain(hung, step(), timeout_seconds) from None


def is_timeout(error: RuntimeError) -> bool:
    """Whether a collective timed out, rather than losing a connection.

    The second message is gloo's for other collectives that were in flight.
    """
    return any(message in str(error).lower() for message in ("timed out", "application timeout"))


def find_hung_ranks(waited: bool) -> list[int] | None:
    """Find ranks that do not respond; called by each rank whose collective failed.

    The ranks communicate through the key-value store of the process group. Ray keeps it in rank 0's process: if the
    store does not respond, rank 0 hangs.

    Args:
        waited: whether this rank's collective timed out, rather than losing the connection to another rank.

    Returns:
        The ranks, in order; None if no rank timed out, or if the store could not be queried.
    """
    answers: queue.SimpleQueue[list[int] | None] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(_silent_ranks(waited))
        # Whatever fails here, the error to show is that of the collective.
        except Exception as error:
            logger.info("Hung ranks are unknown, because the store could not be queried: %s", error)
            answers.put(None)

    # In a thread, because a request to a frozen store ignores all timeouts.
    threading.Thread(target=ask, daemon=True).start()
    try:
        return answers.get(timeout=SECONDS_TO_ANSWER + STORE_SECONDS)
    except queue.Empty:
        return [0]


def _silent_ranks(waited: bool) -> list[int] | None:
    """Report this rank's failure in the store, and wait for the reports of the other ranks."""
    store = default_store()
    if store is None:
        return None
    started = time.monotonic()
    silent = set(range(dist.get_world_size()))
    timed_out = {dist.get_rank()} if waited else set()
    store.set(_key(dist.get_rank()), "waited" if waited else "lost a connection")
    while silent and time.monotonic() < started + (SECONDS_TO_ANSWER if timed_out else SECONDS_TO_REPORT):
        reported = [rank for rank in silent if store.check([_key(rank)])]
        timed_out.update(rank for rank in reported if store.get(_key(rank)) == b"waited")
        silent.difference_update(reported)
        time.sleep(SECONDS_BETWEEN_CHECKS)
    return sorted(silent) if timed_out else None


def _key(rank: int) -> str:
    return f"vgg_ddp/collective/{rank}"


def explain(hung: list[int], step: int, timeout_seconds: float) -> HungRankError:
    """The error that names the hung ranks."""
    who = f"rank {hung[0]}" if len(hung) == 1 else f"ranks {', '.join(map(str, hung))}"
    return HungRankError(
        f"{who if hung else 'a rank'} hung: no answer within {timeout_seconds:g} s in step {step + 1} "
        "(--collective-timeout-seconds)"
    )
