"""What Ray reads from the environment when it is imported and started; so Ray is not imported here."""

import os
import sys
from pathlib import Path

from vgg_ddp import allocation

PACKAGE = Path(__file__).resolve().parent
LOCAL = "local"

DEFAULTS = {
    # How soon the controller sees that a worker is dead, or that all have finished: every 2 s by default.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",
    # A node that is about to go leaves little time for a checkpoint: by default 5 s pass before the workers hear of it.
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
    # The dashboard of a cluster that stays can tell of its runs: /api/train/v2/runs/v1.
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",
}
# How long the controller waits for the CPUs or GPUs of all workers before it starts over: 60 s by default.
PATIENT_DEFAULTS = {
    # A machine that comes in place of another takes minutes to boot.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "1200",
}
ELASTIC_DEFAULTS = {
    # For up to 20 s, what Ray counts includes a machine that is gone. Then there are fewer workers to ask for.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10",
}
LOCAL_DEFAULTS = {
    # An actor more to start, whose memory would end with the run.
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    # Ray's way to keep to loopback, which it takes by itself on macOS; else its processes listen on all interfaces.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # One machine has no node that could go before the others: the watcher for that would only take time to start.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
STREAMING_DEFAULTS = {
    # Ray ends processes that had nothing to do for a second. Those that decode wait between two row groups, and new
    # ones take seconds of a core to start.
    "RAY_idle_worker_killing_time_threshold_ms": "600000",
}


def prepare(address: str | None, streamed: bool = False, elastic: bool = False) -> str:
    """Set what Ray reads from the environment, but for what the user has set; to be called before Ray is imported.

    Returns:
        The address of the Ray cluster to join, or `LOCAL` for one to start on this machine.
    """
    address = address or os.environ.get("RAY_ADDRESS") or LOCAL
    defaults = DEFAULTS | (ELASTIC_DEFAULTS if elastic else PATIENT_DEFAULTS)
    if address == LOCAL:
        defaults = defaults | LOCAL_DEFAULTS | allocation.ENVIRONMENT | (STREAMING_DEFAULTS if streamed else {})
        # Ray's processes inherit the path: cheaper than shipping the package to the machine it is on.
        folders = [str(PACKAGE.parent), os.environ.get("PYTHONPATH")]
        os.environ["PYTHONPATH"] = os.pathsep.join(folder for folder in folders if folder)
    if not sys.stdout.isatty():
        # Ray would colour what it forwards from the workers, in a file or a pipe, too.
        os.environ.setdefault("RAY_COLOR_PREFIX", "0")
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    return address
