"""Which rank is the reason when a collective runs into its timeout."""

import contextlib
import threading
import time

import torch.distributed as dist

# Ranks that waited for the same one give up within moments of each other.
SECONDS_TO_ANSWER = 10.0
# A rank that gives up closes its connections, and tells why right after.
SECONDS_TO_TELL = 3.0
SECONDS_BETWEEN_LOOKS = 0.1


class HungRankError(Exception):
    """Ranks that did not take part in a collective in time."""


def is_timeout(error: RuntimeError) -> bool:
    """Whether a collective gave up waiting, as against losing a connection.

    The second message is what gloo has for the other collectives that were under way then.
    """
    return any(message in str(error).lower() for message in ("timed out", "application timeout"))


def find_hung_ranks(waited: bool) -> list[int] | None:
    """Ranks that do not answer; called by each rank whose collective failed.

    The ranks meet in the key-value store of the process group. Ray has it in rank 0's process: where it does not
    answer, rank 0 hangs.

    Args:
        waited: whether this rank ran into the timeout itself, or only lost the connection to another.

    Returns:
        The ranks, in order; None if no rank ran into the timeout.
    """
    silent = set(range(dist.get_world_size()))
    answered = threading.Event()
    timeouts = {dist.get_rank()} if waited else set()

    def listen() -> None:
        # torch has no public way to the store that Ray or torchrun made.
        store = dist.distributed_c10d._get_default_store()
        started = time.monotonic()
        with contextlib.suppress(RuntimeError):
            store.set(_key(dist.get_rank()), "waited" if waited else "lost a connection")
            while silent and time.monotonic() < started + (SECONDS_TO_ANSWER if timeouts else SECONDS_TO_TELL):
                heard = [rank for rank in silent if store.check([_key(rank)])]
                timeouts.update(rank for rank in heard if store.get(_key(rank)) == b"waited")
                silent.difference_update(heard)
                time.sleep(SECONDS_BETWEEN_LOOKS)
        answered.set()

    # In a thread, since a request to a store that is frozen heeds no timeout.
    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    thread.join(SECONDS_TO_ANSWER + 2.0)
    if not answered.is_set():
        return [0]
    return sorted(silent) if timeouts else None


def _key(rank: int) -> str:
    return f"vgg_ddp/collective/{rank}"


def explain(hung: list[int], step: int, timeout_seconds: float) -> HungRankError:
    """The error that names the hung ranks."""
    who = f"rank {hung[0]}" if len(hung) == 1 else f"ranks {', '.join(map(str, hung))}"
    return HungRankError(
        f"{who if hung else 'a rank'} hung: no answer within {timeout_seconds:g} s in step {step + 1} "
        "(--collective-timeout-seconds)"
    )
