"""Faults of a host's clock: it jumps, for the processes of Ray and of the run.

The clock of a namespace cannot be set; a library, which is loaded into the processes, changes the time that they read.
"""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from benchmarks.faults.cluster.links import choose_host
from benchmarks.faults.cluster.scene import Scene

SOURCE = Path(__file__).with_name("clock.c")
STEP_SECONDS = 3600


def is_available() -> bool:
    """Whether this machine has a C compiler."""
    return shutil.which("cc") is not None


def environment(folder: Path) -> dict[str, str]:
    """The variables with which processes of the host of this folder read the clock that `step` changes.

    At first, the clock is right.
    """
    library = folder / "libclock.so"
    if not library.exists():
        subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", library, SOURCE], check=True)
    _shift(folder, 0)
    return {"LD_PRELOAD": str(library), "CLOCK_OFFSET_FILE": str(folder / "clock")}


def step(seconds: int) -> Callable[[Scene], None]:
    """A fault: the clock of a host jumps by this many seconds, and stays so until the fault ends."""

    def inject(scene: Scene) -> None:
        folder = choose_host(scene).folder
        scene.undo.callback(_shift, folder, 0)
        _shift(folder, seconds)

    return inject


def _shift(folder: Path, seconds: int) -> None:
    # In place, since the processes have mapped the file.
    with open(folder / "clock", "r+b" if (folder / "clock").exists() else "wb") as file:
        file.write(seconds.to_bytes(8, "little", signed=True))
