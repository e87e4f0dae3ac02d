"""Read torchrun's environment variables."""

import os


def is_launcher() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def may_restart() -> bool:
    """Whether torchrun restarts its processes after a failure."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0


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
