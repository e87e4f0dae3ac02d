"""What all tests share: a private home, so that no token or setting of the user's reaches Ray."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from command import SAMPLE


@pytest.fixture(scope="session", autouse=True)
def private_home() -> Iterator[Path]:
    """A home and a folder for Ray of this test session's own; short, since Ray's socket paths are limited."""
    with (
        tempfile.TemporaryDirectory(prefix="vgg-", ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("HOME", folder)
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
            patch.delenv(name, raising=False)
        yield Path(folder)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 240 training and 60 test images of the bundled sample, as a folder of Parquet files."""
    folder = tmp_path_factory.mktemp("tiny")
    for split, count in (("train", 240), ("test", 60)):
        pq.write_table(pq.read_table(SAMPLE / f"{split}.parquet").slice(0, count), folder / f"{split}.parquet")
    return folder
