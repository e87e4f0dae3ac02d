"""Environment variables that Ray reads when it is imported and started; so this module must not import Ray."""

import os
import sys

from vgg_ddp.compat import ray_variables
from vgg_ddp.compat.ray_constants import listen_on_loopback_only
from vgg_ddp.driver.ray_files import choose_temporary_folder, provide_token
from vgg_ddp.flags import UsageError
from vgg_ddp.machine import malloc
from vgg_ddp.machine.code import PACKAGE
from vgg_ddp.machine.loopback import GLOO_ON_LOOPBACK

# INITIALIZED: the cluster that this process has joined already.
LOCAL, AUTO, INITIALIZED = "local", "auto", "initialized"

DEFAULTS = {
    # How often the controller checks whether a worker died or all have finished; 2 s by default.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",
    # Lists runs in the dashboard of a long-lived cluster: /api/train/v2/runs/v1.
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",
    **ray_variables.FREQUENT_PREEMPTION_CHECKS,
    **ray_variables.NO_UV_RUN,
}
# How long the controller waits for the CPUs or GPUs of all workers before it retries; 60 s by default.
PATIENT_DEFAULTS = {
    # A replacement machine takes minutes to boot.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "1200",
}
ELASTIC_DEFAULTS = {
    # For up to 20 s, Ray still counts a lost machine. Then the controller requests fewer workers.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10",
}
LOCAL_DEFAULTS = {
    # Avoids starting an actor whose records would be lost when the run ends.
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    **ray_variables.LOOPBACK_ONLY,
    **GLOO_ON_LOOPBACK,
    **ray_variables.NO_PREEMPTION_WATCHER,
    **malloc.ENVIRONMENT,
}


def is_initialized() -> bool:
    """Whether this process is connected to a Ray cluster."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def resolve(address: str | None) -> str:
    """The address of the Ray cluster to join, `LOCAL` to start one on this machine, or `INITIALIZED`.

    Raises:
        UsageError: if it is malformed, or if Ray is initialized already and an address is given.
    """
    if is_initialized():
        if address:
            raise UsageError(f"--address {address}: Ray is initialized in this process already; omit the address.")
        return INITIALIZED
    # As Ray does, AUTO prefers the variable.
    if address is None or address == AUTO:
        address = os.environ.get("RAY_ADDRESS") or address or LOCAL
    host, _, port = address.rpartition(":")
    if address not in (LOCAL, AUTO) and (not host or not port.isdigit() or "://" in address):
        raise UsageError(f"{describe(address)}: expected HOST:PORT of a Ray head node (usually port 6379), or auto.")
    return address


def describe(address: str) -> str:
    """The address as the user gave it: in the environment or as a flag."""
    return f"RAY_ADDRESS={address}" if os.environ.get("RAY_ADDRESS") == address else f"--address {address}"


def prepare(address: str | None, streamed: bool = False, elastic: bool = False) -> str:
    """Set Ray's environment variables, except those that the user has set. Call before Ray is imported.

    Returns:
        The address of the Ray cluster to join, `LOCAL` to start one on this machine, or `INITIALIZED`.

    Raises:
        UsageError: if Ray cannot be started in this environment, or for an address as in `resolve`.
    """
    address = resolve(address)
    defaults = DEFAULTS | (ELASTIC_DEFAULTS if elastic else PATIENT_DEFAULTS)
    if address == LOCAL:
        choose_temporary_folder()
        provide_token()
        defaults = defaults | LOCAL_DEFAULTS | (ray_variables.KEEP_IDLE_PROCESSES if streamed else {})
        # Ray's processes inherit the path; shipping the package within one machine would be slower.
        folders = [str(PACKAGE.parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        # An empty entry would be the working directory.
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, folders))
    if not sys.stdout.isatty():
        # By default, Ray colors the workers' output even in a file or a pipe.
        os.environ.setdefault("RAY_COLOR_PREFIX", "0")
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    if address == LOCAL and ray_variables.LOOPBACK_ONLY.items() <= os.environ.items():
        listen_on_loopback_only()
    return address
