"""Two mounts of one folder that do not see each other's locks, as on two machines with a network file system."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def two_mounts(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Mount a new folder twice; yield both. Skips the test where this is not possible."""
    if not shutil.which("bindfs"):
        pytest.skip("needs bindfs (Debian package bindfs)")
    stored, *mounts = (folder / name for name in ("stored", "one", "two"))
    mounted = []
    try:
        for path in (stored, *mounts):
            path.mkdir()
        for path in mounts:
            result = subprocess.run(["bindfs", "--no-allow-other", stored, path], capture_output=True, text=True)
            if result.returncode:
                pytest.skip(f"needs permission to mount a file system: {result.stderr.strip()}")
            mounted.append(path)
        yield mounts[0], mounts[1]
    finally:
        for path in mounted:
            # Lazily, because a process that the test has killed may still have a file open.
            subprocess.run(["fusermount", "-u", "-z", path], check=True)
