"""What torchrun tells the processes that it starts, by their environment."""

import os


def has_started_this() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def may_restart() -> bool:
    """Whether torchrun starts its processes again if one fails."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0


def command(script: str) -> str:
    """The command line that starts a script in as many processes again; ... stands for what several machines need."""
    options = f"--nproc-per-node={local_world_size()}" if world_size() == local_world_size() else "..."
    return f"torchrun {options} {script}"


def is_rank_zero() -> bool:
    """Whether this process is torchrun's rank 0, or there is no torchrun."""
    return os.environ.get("RANK", "0") == "0"


def world_size() -> int:
    """How many processes torchrun has started in all; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_world_size() -> int:
    """How many of them are on this machine; 1 without torchrun."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
