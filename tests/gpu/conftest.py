"""The fake CUDA, built once per session, for tests that run the program on GPUs which do not exist."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fake_cuda import build

FakeGpus = Callable[..., dict[str, str]]


@pytest.fixture(scope="session")
def fake_cuda() -> Iterator[Path]:
    """The folder of the compiled libraries."""
    with tempfile.TemporaryDirectory(prefix="fake-cuda-") as folder:
        try:
            build.build(Path(folder))
        except build.UnavailableError as error:
            pytest.skip(str(error))
        yield Path(folder)


@pytest.fixture(scope="session")
def fake_gpus(fake_cuda: Path) -> FakeGpus:
    """Environment variables that put a command on fake GPUs: `run_main(..., **fake_gpus(2, memory_mb=500))`.

    The settings are those of `tests/fake_cuda/src/fake.h`. With `counts=folder`, each process writes what it did to a
    file there: see `fake_cuda.counts`.
    """

    def environment(gpus: int, **settings: object) -> dict[str, str]:
        return build.environment(fake_cuda, gpus, **settings)

    return environment
