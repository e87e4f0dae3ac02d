"""Read torchrun's environment variables."""

import functools
import os
from typing import Any

from vgg_ddp.flags import UsageError

NUMBERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
# What torch needs to connect the processes of a group.
VARIABLES = (*NUMBERS, "MASTER_ADDR", "MASTER_PORT")


def is_launcher() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def may_restart() -> bool:
    """Whether torchrun restarts its processes after a failure."""
    return is_launcher() and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0


def command(script: str) -> str:
    """The command that starts a script with this many processes; "..." replaces the options for several machines."""
    options = f"--nproc-per-node={local_world_size()}" if world_size() == local_world_size() else "..."
    return f"torchrun {options} {script}"


def is_rank_zero() -> bool:
    """Whether this process is torchrun's rank 0; True without torchrun."""
    return os.environ.get("RANK", "0") == "0"


def world_size() -> int:
    """Number of processes that torchrun started; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_world_size() -> int:
    """Number of torchrun's processes on this machine; 1 without torchrun."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def check_numbers() -> None:
    """Check the variables that the other functions read as numbers.

    Raises:
        UsageError: naming the variable that is none.
    """
    for name in (*NUMBERS, "MASTER_PORT", "TORCHELASTIC_MAX_RESTARTS"):
        value = os.environ.get(name, "0")
        if not value.isdecimal():
            raise UsageError(f"{name}={value}: expected a number, as torchrun sets it; unset the variable.")


def gather(topic: str, value: str) -> list[str]:
    """Every process's value, in the order of the ranks, before there is a process group. All processes must call this.

    `topic` is different for each call.
    """
    if world_size() == 1:
        return [value]
    store, rank, ranks = _store(), int(os.environ["RANK"]), range(world_size())
    # The store may outlive processes that torchrun restarts.
    topic = f"{topic}-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    store.set(f"{topic}-{rank}", value)
    values = [store.get(f"{topic}-{other}").decode() for other in ranks]
    # Rank 0 may host the store: it must not exit before the others have read it.
    store.set(f"{topic}-read-{rank}", "")
    if rank == 0:
        store.wait([f"{topic}-read-{other}" for other in ranks])
    return values


@functools.cache
def _store() -> Any:
    """The key-value store in which torch will connect the processes."""
    from torch.distributed.rendezvous import rendezvous

    store, _, _ = next(rendezvous("env://"))
    return store


def check_variables(num_workers: int | None) -> None:
    """Check that the variables describe a group of processes that can train together; forget those of a single process.

    They may be left over from another program, or come from a launcher that is not torchrun.

    Raises:
        UsageError: naming the variables, if they do not.
    """
    given = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    rank, local_rank = int(given.get("RANK", "0")), int(given.get("LOCAL_RANK", "0"))
    size, local_size = int(given.get("WORLD_SIZE", "1")), int(given.get("LOCAL_WORLD_SIZE", "1"))
    if not is_launcher() and (rank, local_rank, size, local_size) == (0, 0, 1, 1):
        for name in given:
            del os.environ[name]
        return
    shown = " ".join(f"{name}={given[name]}" for name in NUMBERS if name in given)
    if num_workers != 0:
        starts = "this command" if num_workers is None else f"--num-workers {num_workers}"
        raise UsageError(
            f"{shown}: another launcher has started a group of processes, but {starts} starts workers of its own; "
            "unset these variables, or train in the group with --num-workers 0."
        )
    if missing := [name for name in VARIABLES if name not in given]:
        raise UsageError(
            f"{shown or 'TORCHELASTIC_RUN_ID'} is set, but not {' '.join(missing)}: start the processes with torchrun, "
            "or unset the variables to train in one process."
        )
    if rank >= size or local_rank >= local_size or local_size > size:
        raise UsageError(
            f"{shown}: these values contradict each other; unset the variables, or start the processes with torchrun."
        )
