"""Shared by all tests: a private home directory, so that Ray does not see the user's tokens or settings."""

import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from support.command import SAMPLE, SETTINGS


@pytest.fixture(scope="session", autouse=True)
def private_home() -> Iterator[Path]:
    """A home directory and a folder for Ray, private to this test session; short, because Ray limits socket paths."""
    with (
        tempfile.TemporaryDirectory(prefix="vgg-", ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("HOME", folder)
        patch.setenv("RAY_TMPDIR", folder)
        # A shell ignores Ctrl-C in commands that it starts in the background; the tests' processes would inherit that.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # And `nohup` ignores this one.
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        for name, value in SETTINGS.items():
            patch.setenv(name, value)
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
