"""The fake CUDA, built once per session, for tests that run the program on GPUs which do not exist."""

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fake_cuda import build

FakeGpus = Callable[..., dict[str, str]]


@pytest.fixture(scope="session")
def fake_cuda(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the compiled libraries; processes of the same test run share it."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    libraries = folder / "fake-cuda"
    with (folder / "fake-cuda.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not libraries.exists():
            unfinished = folder / "fake-cuda-unfinished"
            unfinished.mkdir(exist_ok=True)
            try:
                build.build(unfinished)
            except build.UnavailableError as error:
                pytest.skip(str(error))
            unfinished.rename(libraries)
    return libraries


@pytest.fixture(scope="session")
def fake_gpus(fake_cuda: Path) -> FakeGpus:
    """Environment variables that put a command on fake GPUs: `run_main(..., **fake_gpus(2, memory_mb=500))`.

    The settings are those of `tests/fake_cuda/src/fake.h`. With `counts=folder`, each process writes what it did to a
    file there: see `fake_cuda.counts`.
    """

    def environment(gpus: int, **settings: object) -> dict[str, str]:
        return build.environment(fake_cuda, gpus, **settings)

    return environment
