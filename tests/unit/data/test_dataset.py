"""Images and labels from Parquet files, compared with Pillow and numpy."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from vgg_ddp.data.dataset import Dataset, load_dataset, load_split
from vgg_ddp.data.decode import decode_image
from vgg_ddp.data.source import Source, find_source
from vgg_ddp.data.streamed_dataset import StreamedDataset, open_stream
from vgg_ddp.flags import UsageError

Pixels = npt.NDArray[np.uint8]
MakeParquet = Callable[..., Path]


def load(folder: Path, image_size: int = 32) -> Pixels:
    split, _ = load_split(find_source(str(folder), "unused"), "train", image_size)
    return split.images


def test_png_decodes_to_its_pixels(encode: Callable[..., bytes], random_pixels: Pixels) -> None:
    decoded = decode_image(encode(random_pixels[0]), 32)
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, random_pixels[0])


def test_jpeg_decodes_like_pillow(encode: Callable[..., bytes], random_pixels: Pixels) -> None:
    encoded = encode(random_pixels[0], "JPEG")
    np.testing.assert_array_equal(decode_image(encoded, 32), np.asarray(Image.open(io.BytesIO(encoded))))


@pytest.mark.parametrize("shape", [(40, 24), (16, 16), (300, 200)])
def test_other_sizes_are_resized_bilinearly(encode: Callable[..., bytes], shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    expected = Image.fromarray(pixels).resize((32, 32), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(decode_image(encode(pixels), 32), np.asarray(expected))


def test_grayscale_becomes_three_equal_channels(encode: Callable[..., bytes], random_pixels: Pixels) -> None:
    gray = random_pixels[0, :, :, 0]
    np.testing.assert_array_equal(decode_image(encode(gray), 32), np.repeat(gray[:, :, None], 3, axis=2))


@pytest.mark.parametrize("column", ["img", "image"])
@pytest.mark.parametrize("struct", [True, False])
def test_images_may_be_bytes_or_a_struct_under_either_name(
    tmp_path: Path, make_parquet: MakeParquet, random_pixels: Pixels, column: str, struct: bool
) -> None:
    for name in ("train", "test"):
        make_parquet(tmp_path / f"{name}.parquet", random_pixels, range(6), column=column, struct=struct)
    dataset = load_dataset(find_source(str(tmp_path), "unused"), 32)
    np.testing.assert_array_equal(dataset.train.images, random_pixels)
    np.testing.assert_array_equal(dataset.test.labels, np.arange(6))
    assert dataset.train.labels.dtype == np.int64


def test_shards_are_read_in_order_of_their_names(
    tmp_path: Path, make_parquet: MakeParquet, random_pixels: Pixels
) -> None:
    make_parquet(tmp_path / "train-00001-of-00002.parquet", random_pixels[4:], [4, 5])
    make_parquet(tmp_path / "train-00000-of-00002.parquet", random_pixels[:4], [0, 1, 2, 3])
    make_parquet(tmp_path / "test-00000-of-00001.parquet", random_pixels[:1], [5])
    dataset = load_dataset(find_source(str(tmp_path), "unused"), 32)
    np.testing.assert_array_equal(dataset.train.images, random_pixels)
    assert dataset.train.labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert dataset.test.labels.tolist() == [5]
    assert dataset.class_names == ("0", "1", "2", "3", "4", "5")


def test_images_decoded_in_several_chunks_keep_their_order(tmp_path: Path, make_parquet: MakeParquet) -> None:
    numbers = np.arange(2300)
    pixels = np.zeros((2300, 4, 4, 3), dtype=np.uint8)
    pixels[..., 0], pixels[..., 1] = (numbers // 256)[:, None, None], (numbers % 256)[:, None, None]
    for name in ("train", "test"):
        make_parquet(tmp_path / f"{name}.parquet", list(pixels), numbers % 3)
    decoded = load(tmp_path, image_size=32)
    assert decoded.shape == (2300, 32, 32, 3)
    np.testing.assert_array_equal(decoded[:, 16, 16].astype(int) @ [256, 1, 0], numbers)


def test_empty_shard_is_accepted(tmp_path: Path, make_parquet: MakeParquet, random_pixels: Pixels) -> None:
    make_parquet(tmp_path / "train-0.parquet", random_pixels[:2], [0, 1])
    make_parquet(tmp_path / "train-1.parquet", [], [])
    make_parquet(tmp_path / "test.parquet", random_pixels[:1], [0])
    np.testing.assert_array_equal(load(tmp_path), random_pixels[:2])


def test_class_names_come_from_hugging_face_metadata(
    tmp_path: Path, make_parquet: MakeParquet, random_pixels: Pixels
) -> None:
    for name in ("train", "test"):
        make_parquet(tmp_path / f"{name}.parquet", random_pixels, [0, 1, 2, 0, 1, 2], class_names=["ant", "bee", "fly"])
    dataset = load_dataset(find_source(str(tmp_path), "unused"), 32)
    assert dataset.class_names == ("ant", "bee", "fly")


@pytest.mark.parametrize("read", [load_dataset, open_stream])
def test_splits_with_different_classes_are_rejected(
    tmp_path: Path,
    make_parquet: Callable[..., Path],
    random_pixels: Pixels,
    read: Callable[[Source, int], Dataset | StreamedDataset],
) -> None:
    for split, names in (("train", ["ant", "bee"]), ("test", ["bee", "ant"])):
        make_parquet(tmp_path / f"{split}.parquet", random_pixels[:2], [0, 1], class_names=names)
    with pytest.raises(UsageError, match="label 0 is ant in the training split but bee in the test split"):
        read(find_source(str(tmp_path), "unused"), 32)
    # If only one split has class names, they apply to both.
    for named, nameless in (("train", "test"), ("test", "train")):
        make_parquet(tmp_path / f"{named}.parquet", random_pixels[:2], [0, 1], class_names=["ant", "bee"])
        make_parquet(tmp_path / f"{nameless}.parquet", random_pixels[:2], [0, 1])
        assert read(find_source(str(tmp_path), "unused"), 32).class_names == ("ant", "bee")
    make_parquet(tmp_path / "train.parquet", random_pixels[:2], [0, 1], class_names=["ant", "bee"])
    make_parquet(tmp_path / "train-2.parquet", random_pixels[:2], [0, 1], class_names=["ant", "fly"])
    with pytest.raises(UsageError, match=r"label 1 is fly in train-2.parquet but bee in train.parquet"):
        read(find_source(str(tmp_path), "unused"), 32)


def test_classes_without_metadata_are_numbered(data_folder: Path) -> None:
    assert load_dataset(find_source(str(data_folder), "unused"), 32).class_names == ("0", "1")


def test_channel_statistics_match_numpy(data_folder: Path, random_pixels: Pixels) -> None:
    dataset = load_dataset(find_source(str(data_folder), "unused"), 32)
    np.testing.assert_allclose(dataset.mean, random_pixels[:4].mean(axis=(0, 1, 2), dtype=np.float64))
    np.testing.assert_allclose(dataset.std, random_pixels[:4].std(axis=(0, 1, 2), dtype=np.float64))


def test_standard_deviation_of_a_constant_channel_is_one(tmp_path: Path, make_parquet: MakeParquet) -> None:
    pixels = np.full((2, 32, 32, 3), 7, dtype=np.uint8)
    for name in ("train", "test"):
        make_parquet(tmp_path / f"{name}.parquet", pixels, [0, 1])
    dataset = load_dataset(find_source(str(tmp_path), "unused"), 32)
    assert dataset.mean == (7.0, 7.0, 7.0)
    assert dataset.std == (1.0, 1.0, 1.0)
