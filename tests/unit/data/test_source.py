"""The bundled sample, and CIFAR-10 as torchvision stores it."""

import fcntl
import hashlib
import pickle
import threading
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from torchvision.datasets import CIFAR10

from vgg_ddp.data.dataset import Dataset, load_dataset
from vgg_ddp.data.source import Source, find_source
from vgg_ddp.flags import UsageError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
BATCHES = "cifar-10-batches-py"


@pytest.fixture(scope="module")
def sample() -> Dataset:
    return load_dataset(find_source("sample", "unused"), 32)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send requests to a proxy that does not exist."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")


def test_sample_has_5000_and_1000_images_of_10_classes(sample: Dataset) -> None:
    assert sample.train.images.shape == (5000, 32, 32, 3)
    assert sample.test.images.shape == (1000, 32, 32, 3)
    assert sample.class_names == CLASSES


def test_sample_is_balanced(sample: Dataset) -> None:
    for split, share in ((sample.train, 500), (sample.test, 100)):
        counts = np.bincount(split.labels, minlength=10)
        assert len(counts) == 10
        assert counts.min() > 0.8 * share
        assert counts.max() < 1.2 * share


def test_no_sample_image_is_in_both_splits(sample: Dataset) -> None:
    train, test = ({image.tobytes() for image in split.images} for split in (sample.train, sample.test))
    assert len(test) > 990
    assert not train & test


def test_statistics_of_the_sample_match_numpy(sample: Dataset) -> None:
    np.testing.assert_allclose(sample.mean, sample.train.images.mean(axis=(0, 1, 2), dtype=np.float64))
    np.testing.assert_allclose(sample.std, sample.train.images.std(axis=(0, 1, 2), dtype=np.float64))
    # The published statistics of all 50,000 images, times 255; the sample is a subset.
    np.testing.assert_allclose(sample.mean, [125.3, 123.0, 113.9], atol=2)
    np.testing.assert_allclose(sample.std, [63.0, 62.1, 66.7], atol=2)


def test_waits_while_another_process_unpacks(tmp_path: Path) -> None:
    (tmp_path / BATCHES).mkdir()
    found: list[Source] = []
    search = threading.Thread(target=lambda: found.append(find_source("cifar10", str(tmp_path))))
    with (tmp_path / ".download.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        search.start()
        search.join(0.5)
        assert search.is_alive() and not found
    search.join(10)
    assert [source.kind for source in found] == ["cifar10"]


@pytest.mark.usefixtures("no_network")
def test_auto_falls_back_to_the_sample_within_seconds_with_a_note(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    started = time.monotonic()
    source = find_source("auto", str(tmp_path))
    assert time.monotonic() - started < 10
    assert source == find_source("sample", "unused")
    printed = capsys.readouterr().out
    assert "bundled sample of 5,000 + 1,000 images" in printed
    assert f"--data-dir {tmp_path}" in printed


@pytest.mark.usefixtures("no_network")
def test_only_rank_zero_of_torchrun_prints_the_note(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert find_source("auto", str(tmp_path)) == find_source("sample", "unused")
    assert capsys.readouterr().out == ""


@pytest.mark.usefixtures("no_network")
def test_cifar10_without_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"CIFAR-10 is not in --data-dir .* cannot be reached"):
        find_source("cifar10", str(tmp_path))


@pytest.fixture
def tiny_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> npt.NDArray[np.uint8]:
    """CIFAR-10 files with two images each; torchvision is patched to expect their digests."""
    images = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    folder = tmp_path / BATCHES
    folder.mkdir()
    lists = []
    for number, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        two = images[2 * number : 2 * number + 2]
        # Each row has all red, then all green, then all blue values: https://www.cs.toronto.edu/~kriz/cifar.html
        content = pickle.dumps({"data": two.transpose(0, 3, 1, 2).reshape(2, -1), "labels": [number, 9 - number]})
        (folder / name).write_bytes(content)
        lists.append([name, hashlib.md5(content).hexdigest()])
    meta = pickle.dumps({"label_names": list(CLASSES)})
    (folder / "batches.meta").write_bytes(meta)
    monkeypatch.setattr(CIFAR10, "train_list", lists[:5])
    monkeypatch.setattr(CIFAR10, "test_list", lists[5:])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": hashlib.md5(meta).hexdigest()})
    return images


def test_cifar10_on_disk_is_read_in_order(tmp_path: Path, tiny_cifar10: npt.NDArray[np.uint8]) -> None:
    dataset = load_dataset(find_source("cifar10", str(tmp_path)), 32)
    np.testing.assert_array_equal(dataset.train.images, tiny_cifar10[:10])
    np.testing.assert_array_equal(dataset.test.images, tiny_cifar10[10:])
    assert dataset.train.labels.tolist() == [0, 9, 1, 8, 2, 7, 3, 6, 4, 5]
    assert dataset.test.labels.tolist() == [5, 4]
    assert dataset.test.labels.dtype == np.int64
    assert dataset.class_names == CLASSES


def test_cifar10_is_resized_bilinearly(tmp_path: Path, tiny_cifar10: npt.NDArray[np.uint8]) -> None:
    dataset = load_dataset(find_source("auto", str(tmp_path)), 48)
    expected = [
        np.asarray(Image.fromarray(image).resize((48, 48), Image.Resampling.BILINEAR)) for image in tiny_cifar10
    ]
    np.testing.assert_array_equal(dataset.train.images, expected[:10])


@pytest.mark.parametrize("damage", ["truncated", "missing", "all missing"])
@pytest.mark.usefixtures("tiny_cifar10")
def test_corrupt_cifar10_is_reported(tmp_path: Path, damage: str) -> None:
    for file in sorted((tmp_path / BATCHES).iterdir()):
        if damage == "all missing" or (damage == "missing" and file.name == "data_batch_3"):
            file.unlink()
        elif damage == "truncated" and file.name == "test_batch":
            file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UsageError, match=f"CIFAR-10 in --data-dir {tmp_path} is damaged: delete {BATCHES}"):
        load_dataset(find_source("cifar10", str(tmp_path)), 32)
