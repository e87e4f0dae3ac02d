"""Faults of a host's clock: it jumps, for the processes of Ray and of the run.

The clock of a namespace cannot be set; libfaketime, which is loaded into the processes, changes what they read.
"""

import glob
from collections.abc import Callable
from pathlib import Path

from benchmarks.faults.cluster.links import choose_host
from benchmarks.faults.cluster.scene import Scene

LIBRARY = "/usr/lib/*/faketime/libfaketimeMT.so.1"
STEP_SECONDS = 3600
# Python runs this file at start. Since 3.11, its `sleep` waits until a time of the monotonic clock, which libfaketime
# 0.9.10 refuses as invalid.
SLEEP = """
import select, time
time.sleep = lambda seconds: select.select([], [], [], seconds) and None
"""


def is_available() -> bool:
    return bool(glob.glob(LIBRARY))


def environment(folder: Path) -> dict[str, str]:
    """The variables with which processes of the host of this folder read the clock that `step` changes.

    At first, the clock is right.
    """
    (folder / "clock").write_text("+0\n")
    (folder / "sitecustomize.py").write_text(SLEEP)
    return {
        "PYTHONPATH": str(folder),
        "LD_PRELOAD": glob.glob(LIBRARY)[0],
        "FAKETIME_TIMESTAMP_FILE": str(folder / "clock"),
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        # Files have the times of the storage.
        "NO_FAKE_STAT": "1",
    }


def step(seconds: int) -> Callable[[Scene], None]:
    """A fault: the clock of a host jumps by this many seconds, and stays so until the fault ends."""

    def inject(scene: Scene) -> None:
        clock = choose_host(scene).folder / "clock"
        scene.undo.callback(clock.write_text, "+0\n")
        clock.write_text(f"{seconds:+d}\n")

    return inject
