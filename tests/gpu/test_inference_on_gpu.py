"""predict.py --images on the fake CUDA: tasks decode, and actors classify on the GPUs."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fake_cuda import counts
from support.command import PATIENCE, PREDICT, SAMPLE, run_main

pytestmark = pytest.mark.slow


def test_gpus_classify_like_the_cpu(fake_gpus: Callable[..., dict[str, str]], tiny_data: Path, tmp_path: Path) -> None:
    flags = ("--num-workers", 0, "--data", tiny_data, "--epochs", 1, "--batch-size", 24, "--recipe", "classic")
    trained = run_main(*flags, "--device", "cpu", "--run-name", "run", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    cells = pq.read_table(SAMPLE / "test.parquet")["img"][:300].to_pylist()
    encoded = [cell["bytes"] for cell in cells]
    encoded[7] = b"no image"
    pq.write_table(pa.table({"image": encoded}), tmp_path / "images.parquet")
    counted = tmp_path / "counts"
    counted.mkdir()
    tables = {}
    for device in ("cpu", "gpu"):
        command = [sys.executable, str(PREDICT), "runs/run", "--images", "images.parquet", "--device", device]
        result = subprocess.run(
            [*command, "--output", f"{device}.parquet"],
            cwd=tmp_path,
            env=os.environ | fake_gpus(2, counts=counted),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert result.returncode == 0, result.stderr
        assert f" on {device.upper()}, starting" in result.stdout
        tables[device] = pq.read_table(tmp_path / f"{device}.parquet").to_pydict()
    assert sum(found.launches > 10 for found in counts.read(counted).values()) == 2
    assert not counts.total(counted).starting_with("not emulated", "illegal", "hung")
    cpu, gpu = tables["cpu"], tables["gpu"]
    for name in ("path", "row", "class", "error"):
        assert gpu[name] == cpu[name]
    assert cpu["error"][7] == "not an image in a known format"
    np.testing.assert_allclose(gpu["probability"][:7], cpu["probability"][:7], atol=1e-4)
