"""Which images are streamed."""

from pathlib import Path

import numpy as np
import pytest

from vgg_ddp import ingest
from vgg_ddp.config import TrainConfig
from vgg_ddp.data import Source, find_source
from vgg_ddp.flags import UsageError
from vgg_ddp.ingest import available_memory_bytes, choose_ingest, decoded_bytes

MIB = 2**20


V2, V1 = "0::/mine\n", "9:cpu:/other\n4:memory:/mine\n0::/\n"
NO_LIMIT = 9223372036854771712


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        (V2, {}, 100),
        (V2, {"mine/memory.max": "max", "mine/memory.current": 5 * MIB}, 100),
        (V2, {"mine/memory.max": 60 * MIB, "mine/memory.current": 20 * MIB}, 40),
        (V2, {"mine/memory.max": 20 * MIB, "mine/memory.current": 21 * MIB}, 0),
        # A container that sees its group as the root.
        (V2, {"memory.max": 60 * MIB, "memory.current": 20 * MIB}, 40),
        (V1, {"memory/mine/memory.limit_in_bytes": NO_LIMIT, "memory/mine/memory.usage_in_bytes": 5 * MIB}, 100),
        (V1, {"memory/mine/memory.limit_in_bytes": 60 * MIB, "memory/mine/memory.usage_in_bytes": 20 * MIB}, 40),
    ],
)
def test_memory_left_is_that_of_the_machine_or_of_its_control_group(
    groups: str, files: dict[str, object], expected: int, tmp_path: Path
) -> None:
    everything = {f"sys/fs/cgroup/{name}": content for name, content in files.items()}
    everything |= {"proc/self/cgroup": groups, "proc/meminfo": "MemTotal: 204800 kB\nMemAvailable: 102400 kB\n"}
    for name, content in everything.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{content}\n" if name.startswith("sys") else str(content))
    assert available_memory_bytes(tmp_path) == expected * MIB


def test_memory_left_here_is_less_than_all() -> None:
    import psutil

    assert 0 < available_memory_bytes() <= psutil.virtual_memory().total


def test_decoded_size_counts_both_splits(data_folder: Path) -> None:
    assert decoded_bytes(find_source(str(data_folder), ""), 40) == np.zeros((6, 40, 40, 3), np.uint8).nbytes


@pytest.mark.parametrize(("left", "expected"), [(6 * 32 * 32 * 3 * 4, "memory"), (6 * 32 * 32 * 3 * 4 - 4, "stream")])
def test_images_are_streamed_if_they_would_take_more_than_a_quarter_of_the_memory(
    left: int, expected: str, data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "available_memory_bytes", lambda: left)
    source = find_source(str(data_folder), "")
    assert choose_ingest(TrainConfig(), source) == expected
    assert choose_ingest(TrainConfig(ingest="memory"), source) == "memory"
    assert choose_ingest(TrainConfig(ingest="stream"), source) == "stream"
    # Without a cluster there is nobody who could decode meanwhile.
    assert choose_ingest(TrainConfig(num_workers=0), source) == "memory"


def test_what_cannot_be_streamed_is_refused(data_folder: Path) -> None:
    with pytest.raises(UsageError, match="--ingest stream needs a Ray cluster"):
        choose_ingest(TrainConfig(ingest="stream", num_workers=0), find_source(str(data_folder), ""))
    cifar10 = Source("CIFAR-10", "data", "cifar10")
    with pytest.raises(UsageError, match="--ingest stream reads Parquet files only"):
        choose_ingest(TrainConfig(ingest="stream"), cifar10)
    assert choose_ingest(TrainConfig(), cifar10) == "memory"
