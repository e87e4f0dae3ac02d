"""Invalid data: each error names the file, the row, and what was expected."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vgg_ddp.data.dataset import Dataset, load_dataset
from vgg_ddp.data.source import find_source
from vgg_ddp.flags import UsageError

Pixels = npt.NDArray[np.uint8]
MakeParquet = Callable[..., Path]


def load(folder: Path) -> Dataset:
    return load_dataset(find_source(str(folder), "unused"), 32)


def message(folder: Path) -> str:
    with pytest.raises(UsageError) as error:
        load(folder)
    text = str(error.value)
    assert "\n" not in text
    return text


def test_missing_folder_is_reported(tmp_path: Path) -> None:
    assert message(tmp_path / "none") == (
        f"--data {tmp_path / 'none'} does not exist: expected auto, cifar10, sample, or a folder or URI."
    )


def test_file_in_place_of_a_folder_is_reported(data_folder: Path) -> None:
    file = data_folder / "train.parquet"
    assert message(file).startswith(f"--data {file} cannot be read: expected a folder, not a file: ")


def test_unknown_scheme_is_reported() -> None:
    with pytest.raises(UsageError, match="--data nosuch://bucket/images cannot be read"):
        find_source("nosuch://bucket/images", "unused")


def test_empty_folder_is_reported(tmp_path: Path) -> None:
    assert f"--data {tmp_path} has no Parquet files of a training split: it is empty." in message(tmp_path)


def test_folder_without_test_files_is_reported(data_folder: Path) -> None:
    (data_folder / "test.parquet").unlink()
    assert f"--data {data_folder} has a training split, train.parquet, but no test or validation split" in message(
        data_folder
    )


@pytest.mark.parametrize("column", ["img", "label"])
def test_missing_column_is_reported(data_folder: Path, column: str) -> None:
    file = data_folder / "test.parquet"
    pq.write_table(pq.read_table(file).drop_columns([column]), file)
    missing, left, flag = {
        "img": ("image or img", "label (int64)", "--image-column"),
        "label": ("label, labels or fine_label", "img (struct)", "--label-column"),
    }[column]
    assert message(data_folder) == (
        f"{file} has no column named {missing}; it has {left}: no column can be used as {flag}."
    )


def test_file_that_is_not_parquet_is_reported(data_folder: Path) -> None:
    (data_folder / "train.parquet").write_bytes(b"epoch,loss\n1,2\n" * 100)
    assert f"{data_folder / 'train.parquet'} cannot be read as Parquet" in message(data_folder)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_truncated_parquet_file_is_reported(data_folder: Path, share: float) -> None:
    file = data_folder / "train.parquet"
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    assert f"{file} cannot be read as Parquet" in message(data_folder)


@pytest.mark.parametrize(
    ("labels", "kind"), [(["a", "b"], "string"), ([0.5, 1.5], "double"), ([[0], [1]], "list"), ([True, False], "bool")]
)
def test_labels_that_are_not_integers_are_reported(data_folder: Path, labels: list[object], kind: str) -> None:
    file = data_folder / "test.parquet"
    pq.write_table(pq.read_table(file).set_column(1, "label", pa.array(labels)), file)
    text = message(data_folder)
    assert f"column label of {file} has type {kind}" in text
    assert "expected integers" in text


@pytest.mark.parametrize("images", [["a", "b"], [1, 2], [{"url": "a"}, {"url": "b"}], [[1], [2]]])
def test_images_that_are_not_bytes_are_reported(data_folder: Path, images: list[object]) -> None:
    file = data_folder / "test.parquet"
    pq.write_table(pq.read_table(file).set_column(0, "img", pa.array(images)), file)
    text = message(data_folder)
    assert f"column img of {file} has type " in text
    assert "expected binary, or a struct with a field bytes (binary) or path (string)" in text


@pytest.mark.parametrize(
    "content", [None, b"", b"not an image", b"\x89PNG\r\n\x1a\n", b"GIF89a" + bytes(100)], ids=repr
)
@pytest.mark.parametrize("struct", [True, False])
def test_corrupt_image_is_reported_with_file_and_row(
    data_folder: Path, make_parquet: MakeParquet, random_pixels: Pixels, content: bytes | None, struct: bool
) -> None:
    make_parquet(data_folder / "test.parquet", [*random_pixels[:3], content], [0, 1, 0, 1], struct=struct)
    text = message(data_folder)
    assert text.startswith("the image in row 3 of test.parquet cannot be decoded (")
    assert text.endswith(").")


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated_image_is_reported_with_file_and_row(
    data_folder: Path,
    make_parquet: MakeParquet,
    encode: Callable[..., bytes],
    random_pixels: Pixels,
    kind: str,
    share: float,
) -> None:
    encoded = encode(random_pixels[0], kind)
    images = [random_pixels[1], encoded[: int(len(encoded) * share)]]
    make_parquet(data_folder / "train-1.parquet", images, [0, 1])
    assert message(data_folder).startswith("the image in row 1 of train-1.parquet cannot be decoded (")


def test_png_with_any_flipped_byte_decodes_or_is_reported(
    tmp_path: Path, make_parquet: MakeParquet, encode: Callable[..., bytes], random_pixels: Pixels
) -> None:
    encoded = encode(random_pixels[0, :8, :8])
    make_parquet(tmp_path / "test.parquet", random_pixels[:1], [0])
    reported = 0
    for offset in range(0, len(encoded), 3):
        damaged = bytearray(encoded)
        damaged[offset] ^= 0xFF
        make_parquet(tmp_path / "train.parquet", [bytes(damaged)], [0])
        try:
            load(tmp_path)
        except UsageError as error:
            assert "row 0 of train.parquet" in str(error)
            reported += 1
    # At least the bytes of the signature and of the compressed pixels.
    assert reported > 0.5 * len(range(0, len(encoded), 3))


def test_image_that_claims_to_be_huge_is_reported(
    data_folder: Path, make_parquet: MakeParquet, encode: Callable[..., bytes], random_pixels: Pixels
) -> None:
    encoded = bytearray(encode(random_pixels[0], "JPEG"))
    # The frame marker is followed by its length, the precision, the height, and the width.
    frame = encoded.index(b"\xff\xc0")
    encoded[frame + 5 : frame + 9] = b"\xff\xff\xff\xff"
    make_parquet(data_folder / "train.parquet", [random_pixels[0], bytes(encoded)], [0, 1])
    assert message(data_folder).startswith("the image in row 1 of train.parquet cannot be decoded (")


def test_null_label_is_reported_with_file_and_row(
    data_folder: Path, make_parquet: MakeParquet, random_pixels: Pixels
) -> None:
    make_parquet(data_folder / "train.parquet", random_pixels[:3], [0, 1, None])
    assert message(data_folder) == "row 2 of train.parquet has no label: expected an integer."


def test_negative_label_is_reported(data_folder: Path, make_parquet: MakeParquet, random_pixels: Pixels) -> None:
    make_parquet(data_folder / "train.parquet", random_pixels[:4], [0, 1, -1, 1])
    assert message(data_folder) == (
        f"label -1 of image 2 in the train split of {data_folder} is out of range: expected 0 to 1, the classes of "
        "the training split."
    )


def test_label_found_only_in_the_test_split_is_reported(
    data_folder: Path, make_parquet: MakeParquet, random_pixels: Pixels
) -> None:
    make_parquet(data_folder / "test.parquet", random_pixels[:2], [1, 2])
    assert f"label 2 of image 1 in the test split of {data_folder} is out of range: expected 0 to 1" in message(
        data_folder
    )


def test_label_beyond_the_class_names_is_reported(
    data_folder: Path, make_parquet: MakeParquet, random_pixels: Pixels
) -> None:
    make_parquet(data_folder / "train.parquet", random_pixels[:3], [0, 1, 2], class_names=["ant", "bee"])
    assert f"label 2 of image 2 in the train split of {data_folder} is out of range: expected 0 to 1" in message(
        data_folder
    )


def test_label_far_beyond_the_number_of_images_is_reported_without_listing_all_classes(
    data_folder: Path, make_parquet: MakeParquet, random_pixels: Pixels
) -> None:
    make_parquet(data_folder / "train.parquet", random_pixels[:3], [0, 1, 1_000_000])
    tracemalloc.start()
    text = message(data_folder)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert f"label 1000000 in {data_folder} is out of range: with 3 training images" in text
    assert peak_bytes < 10_000_000


@pytest.mark.parametrize("split", ["train", "test"])
def test_empty_split_is_reported(data_folder: Path, make_parquet: MakeParquet, split: str) -> None:
    make_parquet(data_folder / f"{split}.parquet", [], [])
    assert message(data_folder) == f"the {split} split of {data_folder} is empty: expected at least one image."
