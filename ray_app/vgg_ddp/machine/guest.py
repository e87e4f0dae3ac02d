"""Scripts that another program runs in its own process, as launchers of Ray jobs do: notice it, find the arguments."""

import argparse
import os
import sys
from pathlib import Path

# Flags of AWS's public Ray launcher for SageMaker, each with a value: before, between, or after those of the script.
LAUNCHER_FLAGS = (
    "-e",
    "--entrypoint",
    "--head-instance-group",
    "--head-num-cpus",
    "--head-num-gpus",
    "--include-dashboard",
    "--launch-prometheus",
    "--prometheus-path",
    "--wait-shutdown",
)


def is_guest(script: str) -> bool:
    """Whether another program runs this script: it was started in its place, or has initialized Ray."""
    ray = sys.modules.get("ray")
    is_connected = ray is not None and bool(ray.is_initialized())
    return is_connected or os.path.realpath(sys.argv[0]) != os.path.realpath(script)


def own_arguments(script: str) -> list[str]:
    """The arguments of this script, without those of another program that runs it.

    These are the flags of the public launcher and, with other programs, everything up to the script's path.
    """
    if not is_guest(script):
        return sys.argv[1:]
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in LAUNCHER_FLAGS:
        parser.add_argument(flag)
    arguments = parser.parse_known_args()[1]
    after = [index + 1 for index, argument in enumerate(arguments) if _names(argument, Path(script).resolve())]
    return arguments[after[0] :] if after else arguments


def _names(argument: str, script: Path) -> bool:
    """Whether an argument such as ray_app/main.py or --script=./ray_app/main.py is the end of the script's path.

    The other program may have changed the working directory.
    """
    value = argument.partition("=")[2] if argument.startswith("--") else argument
    parts = Path(os.path.normpath(value)).parts
    return script.parts[-len(parts) :] == parts
