"""Ray still reads these undocumented environment variables."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from vgg_ddp.compat import ray_variables


@pytest.mark.parametrize(
    ("variable", "file"),
    [
        (ray_variables.LOOPBACK_ONLY, "_private/ray_constants.py"),
        (ray_variables.NO_PREEMPTION_WATCHER, "train/v2/_internal/constants.py"),
        (ray_variables.FREQUENT_PREEMPTION_CHECKS, "train/v2/_internal/constants.py"),
        (ray_variables.WORKER_SETUP, "_private/ray_constants.py"),
        (ray_variables.NO_UV_RUN, "_private/ray_constants.py"),
        (ray_variables.KEEP_IDLE_PROCESSES, "core/src/ray/raylet/raylet"),
    ],
)
def test_ray_reads_the_variable(variable: dict[str, str], file: str) -> None:
    spec = find_spec("ray")
    assert spec is not None and spec.origin is not None
    (name,) = variable
    # Ray's C++ processes add the prefix to the names of their settings.
    known = name if file.endswith(".py") else name.removeprefix("RAY_")
    assert known.encode() in (Path(spec.origin).parent / file).read_bytes()
