"""Images from which nothing can be learned are pointed out, in memory and streamed."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from vgg_ddp.data.dataset import Dataset, load_dataset
from vgg_ddp.data.source import Source, find_source
from vgg_ddp.data.streamed_dataset import StreamedDataset, open_stream

Pixels = npt.NDArray[np.uint8]
PLAIN = np.arange(6, dtype=np.uint8)[:, None, None, None] * 40 + np.zeros((6, 32, 32, 3), np.uint8)


def equal(pixels: Pixels) -> Pixels:
    return pixels[[0] * 6]


def plain(_: Pixels) -> Pixels:
    return PLAIN


def almost_plain(pixels: Pixels) -> Pixels:
    return PLAIN + pixels % 2


def intact(pixels: Pixels) -> Pixels:
    return pixels


def one_of_many(pixels: Pixels) -> Pixels:
    return np.concatenate([PLAIN[:5], pixels[5:]])


@pytest.mark.parametrize("read", [load_dataset, open_stream])
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (equal, "are all the same once decoded"),
        (plain, "have no contrast once decoded: each is a single color"),
        (almost_plain, "have no contrast once decoded: each is a single color"),
        (intact, None),
        (one_of_many, None),
    ],
)
def test_images_without_contrast_are_pointed_out(
    change: Callable[[Pixels], Pixels],
    expected: str | None,
    read: Callable[[Source, int], Dataset | StreamedDataset],
    tmp_path: Path,
    make_parquet: Callable[..., Path],
    random_pixels: Pixels,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_parquet(tmp_path / "train.parquet", change(random_pixels), [0, 1, 2, 0, 1, 2])
    make_parquet(tmp_path / "test.parquet", random_pixels, [0, 1, 2, 0, 1, 2])
    read(find_source(str(tmp_path), "unused"), 32)
    error = capsys.readouterr().err
    if expected is None:
        assert error == ""
    else:
        assert error.startswith(f"NOTE: {tmp_path}: the 6 training images that were checked {expected}")
        assert error.count("\n") == 1


def test_only_one_of_torchruns_processes_points_them_out(
    tmp_path: Path,
    make_parquet: Callable[..., Path],
    random_pixels: Pixels,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for split in ("train", "test"):
        make_parquet(tmp_path / f"{split}.parquet", equal(random_pixels), [0] * 6)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("RANK", "1")
    load_dataset(find_source(str(tmp_path), "unused"), 32)
    assert capsys.readouterr().err == ""
