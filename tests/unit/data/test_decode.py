"""Odd and damaged image files give the same right pixels, or the same refusal, wherever images are decoded."""

import csv
import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import predict
import pyarrow.parquet as pq
import pytest
from PIL import Image

from benchmarks.faults.images import decode_damaged_images
from support.command import PREPARE, ROOT
from support.odd_files import encode, exif
from support.odd_images import PICTURE, OddImage, odd_images, outcome_table
from vgg_ddp.data.dataset import load_split
from vgg_ddp.data.decode import as_png_or_jpeg, decode_image
from vgg_ddp.data.source import find_source
from vgg_ddp.serving.contract import RequestError, decode_request

Pixels = npt.NDArray[np.uint8]
SIZE = 32
# test_nothing_is_printed_about_large_or_damaged_images checks that users do not see these; pytest resets the filter.
pytestmark = pytest.mark.filterwarnings("ignore:::PIL")
each_odd_image = pytest.mark.parametrize("odd", odd_images(), ids=lambda odd: odd.name)


def is_png_or_jpeg(file: bytes) -> bool:
    return file.startswith((b"\x89PNG", b"\xff\xd8"))


def decodable() -> list[bytes]:
    return [file for odd in odd_images() if not isinstance(odd.expected, str) for file in odd.files]


def load(folder: Path) -> Pixels:
    return load_split(find_source(str(folder), "unused"), "train", SIZE)[0].images


@each_odd_image
def test_odd_image_gives_upright_pixels_or_a_reason(odd: OddImage) -> None:
    for file in odd.files:
        if isinstance(odd.expected, str):
            with pytest.raises(OSError) as refusal:
                decode_image(file, None, any_format=True)
            assert odd.expected in str(refusal.value)
        else:
            pixels = decode_image(file, None, any_format=True)
            assert pixels.shape == odd.expected.shape
            np.testing.assert_allclose(pixels.astype(int), odd.expected.astype(int), atol=odd.tolerance)


@each_odd_image
def test_only_png_and_jpeg_are_accepted_in_parquet_files(odd: OddImage) -> None:
    for file in odd.files:
        if is_png_or_jpeg(file) and not isinstance(odd.expected, str):
            expected = decode_image(file, SIZE, any_format=True)
            np.testing.assert_array_equal(decode_image(file, SIZE), expected)
            assert as_png_or_jpeg(file, None) == file
        else:
            with pytest.raises(OSError, match=odd.expected if is_png_or_jpeg(file) else "not PNG or JPEG|empty file"):  # type: ignore[arg-type]
                decode_image(file, SIZE)


def test_parquet_files_of_odd_images_are_loaded(tmp_path: Path, make_parquet: Callable[..., Path]) -> None:
    files = [file for file in decodable() if is_png_or_jpeg(file)]
    assert len(files) > 100
    for split in ("train", "test"):
        make_parquet(tmp_path / f"{split}.parquet", files, [0] * len(files))
    for file, pixels in zip(files, load(tmp_path), strict=True):
        np.testing.assert_array_equal(pixels, decode_image(file, SIZE))


@pytest.mark.parametrize("flags", [(), ("--image-size", SIZE)])
def test_prepared_odd_images_have_the_same_pixels(tmp_path: Path, flags: tuple[object, ...]) -> None:
    images = {
        f"{number}-{part}": (odd, file)
        for number, odd in enumerate(odd_images())
        for part, file in enumerate(odd.files)
    }
    for split, names in (("train", list(images)), ("test", ["0-0"])):
        folder = tmp_path / "images" / split / "odd"
        folder.mkdir(parents=True)
        for name in names:
            (folder / name).write_bytes(images[name][1])
    command = [sys.executable, PREPARE, tmp_path / "images", tmp_path / "out", *flags]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=100)
    assert result.returncode == 0, result.stderr
    broken = {Path(path).name: reason for path, reason in list(csv.reader((tmp_path / "out/broken.csv").open()))[1:]}
    assert broken.keys() == {name for name, (odd, _) in images.items() if isinstance(odd.expected, str)}
    assert all(str(images[name][0].expected) in reason for name, reason in broken.items())
    rows = pq.read_table(tmp_path / "out" / "train-00000-of-00001.parquet").to_pylist()
    assert len(rows) == len(images) - len(broken)
    for row, pixels in zip(rows, load(tmp_path / "out"), strict=True):
        file = images[Path(row["image"]["path"]).name][1]
        np.testing.assert_array_equal(pixels, decode_image(file, SIZE, any_format=True))


def test_predict_classifies_odd_images_like_their_pixels(
    printed_by: Callable[..., str], model_folder: Path, tmp_path: Path
) -> None:
    originals, copies = [], []
    for number, file in enumerate(decodable()):
        originals.append(tmp_path / f"{number}.odd")
        originals[-1].write_bytes(file)
        copies.append(tmp_path / f"{number}.png")
        Image.fromarray(decode_image(file, SIZE, any_format=True)).save(copies[-1])
    results = [printed_by(predict.main, model_folder, *files).splitlines() for files in (originals, copies)]
    for original, copy in zip(*results, strict=True):
        assert original.split()[1:] == copy.split()[1:]


def test_endpoint_accepts_odd_png_and_jpeg_images_and_says_why_not() -> None:
    for odd in odd_images():
        for file in odd.files:
            if is_png_or_jpeg(file) and not isinstance(odd.expected, str):
                (pixels,) = decode_request(file, "image/png")
                np.testing.assert_array_equal(pixels, decode_image(file, None))
                continue
            with pytest.raises(RequestError, match="not a valid image/jpeg:") as refusal:
                decode_request(file, "image/jpeg")
            assert refusal.value.status == 400


def test_endpoint_refuses_images_over_its_own_limit() -> None:
    large = encode(Image.new("1", (5000, 5000)), "PNG")
    with pytest.raises(RequestError, match="5000 x 5000 pixels, expected at most 16777216 in total"):
        decode_request(large, "image/png")


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_ordinary_images_are_decoded_and_resized_like_with_pillow(kind: str, mode: str) -> None:
    encoded = encode(Image.fromarray(PICTURE).convert(mode), kind)
    expected = Image.open(io.BytesIO(encoded)).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(decode_image(encoded, SIZE), np.asarray(expected))


def test_stored_png_of_a_turned_image_has_no_metadata() -> None:
    stored = as_png_or_jpeg(encode(PICTURE, "WEBP", lossless=True, exif=exif(6)), None)
    with Image.open(io.BytesIO(stored)) as image:
        assert image.format == "PNG" and not image.getexif() and image.size == PICTURE.shape[:2]


def test_nothing_is_printed_about_large_or_damaged_images() -> None:
    # Between Pillow's two limits, it would warn.
    program = (
        "import sys; from PIL import Image; from vgg_ddp.data.decode import decode_image\n"
        f"Image.MAX_IMAGE_PIXELS = {PICTURE.size // 3 - 1}\n"
        "decode_image(sys.stdin.buffer.read(), 32, any_format=True)"
    )
    damaged = encode(PICTURE, "TIFF", exif=exif(6)).replace(b"\x12\x01\x03\0\x01", b"\x12\x01\x03\0\xff")
    for file in (encode(PICTURE, "PNG"), damaged):
        command = [sys.executable, "-W", "always", "-c", program]
        result = subprocess.run(command, input=file, capture_output=True, cwd=ROOT / "ray_app", timeout=100)
        assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")


def test_damaged_images_give_pixels_or_a_reason() -> None:
    """More of them: python -m benchmarks.faults.images --count 100000."""
    outcomes, wrong = decode_damaged_images(1000, seed=0)
    assert sum(outcomes.values()) == 1000 and len(outcomes) == 12
    assert not wrong


def test_documentation_lists_every_outcome() -> None:
    page = (ROOT / "docs" / "data.md").read_text()
    assert outcome_table() in page, "run python -m support.odd_images in tests/"
