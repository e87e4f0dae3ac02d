"""Which images are streamed, and which fit in memory."""

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from vgg_ddp.config import TrainConfig
from vgg_ddp.data.source import Source, find_source
from vgg_ddp.driver import inputs as ingest
from vgg_ddp.driver.inputs import choose_ingest, decoded_bytes, load
from vgg_ddp.flags import UsageError
from vgg_ddp.run.runs import Run
from vgg_ddp.run.storage import Folder


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
    # Decoding during training requires a cluster.
    assert choose_ingest(TrainConfig(num_workers=0), source) == "memory"


@pytest.mark.parametrize(
    ("config", "way"),
    [
        (TrainConfig(ingest="memory"), "--ingest stream, or a smaller --image-size"),
        (TrainConfig(num_workers=0), "--num-workers 1 or more, without torchrun, or a smaller --image-size"),
    ],
)
def test_images_that_cannot_fit_into_memory_are_refused_before_they_are_decoded(
    config: TrainConfig, way: str, data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = find_source(str(data_folder), "")
    needed = decoded_bytes(source, 32)
    monkeypatch.setattr(ingest, "available_memory_bytes", lambda: needed)
    assert choose_ingest(config, source) == "memory"
    monkeypatch.setattr(ingest, "available_memory_bytes", lambda: needed - 1)
    with pytest.raises(UsageError, match=f"{data_folder} take 0.0 GB of memory, .* 0.0 GB available: use {way}"):
        choose_ingest(config, source)


def test_every_torchrun_process_needs_the_memory(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = find_source(str(data_folder), "")
    monkeypatch.setattr(ingest, "available_memory_bytes", lambda: 2 * decoded_bytes(source, 32))
    for processes, expected in (("2", nullcontext()), ("3", pytest.raises(UsageError, match="of memory"))):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        with expected:
            choose_ingest(TrainConfig(num_workers=0), source)


def test_large_cifar10_requires_smaller_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "available_memory_bytes", lambda: 9 * 10**9)
    cifar10 = Source("CIFAR-10", "data", "cifar10")
    assert choose_ingest(TrainConfig(image_size=223), cifar10) == "memory"
    with pytest.raises(UsageError) as refusal:
        choose_ingest(TrainConfig(image_size=224), cifar10)
    assert str(refusal.value) == (
        "decoded to --image-size 224, the images of CIFAR-10 take 9.0 GB of memory, but this machine has 9.0 GB "
        "available: use a smaller --image-size."
    )


def test_streaming_without_a_cluster_or_parquet_is_refused(data_folder: Path) -> None:
    with pytest.raises(UsageError, match="--ingest stream requires a Ray cluster"):
        choose_ingest(TrainConfig(ingest="stream", num_workers=0), find_source(str(data_folder), ""))
    cifar10 = Source("CIFAR-10", "data", "cifar10")
    with pytest.raises(UsageError, match="--ingest stream reads only Parquet files"):
        choose_ingest(TrainConfig(ingest="stream"), cifar10)
    assert choose_ingest(TrainConfig(), cifar10) == "memory"


def test_initial_weights_are_read_unless_there_is_a_checkpoint(data_folder: Path, run: Folder) -> None:
    config = TrainConfig(ingest="memory", init_from=str(data_folder / "gone"))
    source = find_source(str(data_folder), "")
    for exists in (False, True):
        with pytest.raises(UsageError, match="gone: expected a folder of a finished run"):
            load(Run(config, "run", run, exists), source)
    (run / "checkpoint_00000001_abcdef").write("state.pt", b"")
    assert load(Run(config, "run", run, exists=True), source).pretrained is None
