"""predict.py, called in this process."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import predict
import pytest
import torch
from PIL import Image

from vgg_ddp.model.vgg import VGG11
from vgg_ddp.weights.model_file import load_classifier

Pixels = npt.NDArray[np.uint8]
CLASSES = ("ant", "bee", "fly")


@pytest.fixture
def command(printed_by: Callable[..., str]) -> Callable[..., str]:
    """Run the command; return its output."""
    return partial(printed_by, predict.main)


@pytest.fixture
def refusal(refused_by: Callable[..., tuple[str, str]]) -> Callable[..., str]:
    """Run the command, which must exit with code 2 and one line; return that line."""

    def run(*arguments: object) -> str:
        out, error = refused_by(predict.main, *arguments)
        assert out == ""
        return error

    return run


@pytest.fixture
def image_files(tmp_path: Path, random_pixels: Pixels) -> list[Path]:
    files = [tmp_path / f"{'long-' * (i % 2)}{i}.png" for i in range(len(random_pixels))]
    for file, pixels in zip(files, random_pixels, strict=True):
        Image.fromarray(pixels).save(file)
    return files


def test_each_image_gets_a_line_with_its_classes_and_probabilities(
    command: Callable[..., str],
    model_folder: Path,
    image_files: list[Path],
    expected_probabilities: npt.NDArray[np.float64],
) -> None:
    lines = command(model_folder, *image_files).splitlines()
    assert len(lines) == len(image_files)
    for line, file, expected in zip(lines, image_files, expected_probabilities, strict=True):
        assert line.startswith(f"{file} ")
        printed = {name: float(value) for name, value in re.findall(r"  (\w+) ([\d.]+)%", line)}
        assert sum(printed.values()) == pytest.approx(100, abs=0.2)
        most_likely_first = np.argsort(-expected)
        assert list(printed) == [CLASSES[i] for i in most_likely_first]
        np.testing.assert_allclose(list(printed.values()), expected[most_likely_first] * 100, atol=0.06)


@pytest.mark.parametrize(("top", "printed"), [(1, 1), (2, 2), (9, 3)])
def test_top_limits_the_number_of_classes(
    command: Callable[..., str], model_folder: Path, image_files: list[Path], top: int, printed: int
) -> None:
    assert command(model_folder, image_files[0], "--top", top).count("%") == printed


def test_images_of_another_size_are_resized(
    command: Callable[..., str], model_folder: Path, tmp_path: Path, random_pixels: Pixels
) -> None:
    large = Image.fromarray(random_pixels[0]).resize((70, 50))
    large.save(tmp_path / "large.png")
    large.resize((32, 32), Image.Resampling.BILINEAR).save(tmp_path / "small.png")
    lines = command(model_folder, tmp_path / "large.png", tmp_path / "small.png").splitlines()
    assert lines[0].split()[1:] == lines[1].split()[1:]


@pytest.mark.parametrize("split", ["train", "test"])
def test_accuracy_equals_a_manual_count(
    command: Callable[..., str],
    model_folder: Path,
    tmp_path: Path,
    make_parquet: Callable[..., Path],
    random_pixels: Pixels,
    expected_probabilities: npt.NDArray[np.float64],
    split: str,
) -> None:
    right = expected_probabilities.argmax(axis=1)
    labels = {"train": right.copy(), "test": (right + 1) % 3}
    labels["train"][0] = (right[0] + 1) % 3
    labels["test"][:2] = right[:2]
    for name, values in labels.items():
        make_parquet(tmp_path / "data" / f"{name}.parquet", random_pixels, values)
    out = command(model_folder, "--data", tmp_path / "data", "--split", split)
    expected = {"train": "accuracy 83.33% (5 of 6 train images)", "test": "accuracy 33.33% (2 of 6 test images)"}
    assert out == expected[split] + "\n"


@pytest.mark.parametrize(
    ("names", "labels", "expected"),
    [
        (["ant", "bee"], [0, 1], "label 2 is fly in "),
        (["bee", "ant", "fly"], [0, 1], "label 0 is ant in "),
        (None, [0, 3], "contains label 3, but the model has labels 0 to 2"),
        (None, [-1, 1], "contains label -1, but the model has labels 0 to 2"),
    ],
)
def test_data_with_other_classes_is_refused(
    refusal: Callable[..., str],
    model_folder: Path,
    tmp_path: Path,
    make_parquet: Callable[..., Path],
    random_pixels: Pixels,
    names: list[str] | None,
    labels: list[int],
    expected: str,
) -> None:
    for split in ("train", "test"):
        make_parquet(tmp_path / "data" / f"{split}.parquet", random_pixels[:2], labels, class_names=names)
    assert expected in refusal(model_folder, "--data", tmp_path / "data")


def test_test_time_augmentation_averages_six_views(
    command: Callable[..., str],
    model_folder: Path,
    tmp_path: Path,
    make_parquet: Callable[..., Path],
    random_pixels: Pixels,
    trained: VGG11,
) -> None:
    classifier = load_classifier(str(model_folder))
    scaled = (random_pixels - classifier.mean.numpy()) / classifier.std.numpy()
    padded = np.pad(scaled.transpose(0, 3, 1, 2), ((0, 0), (0, 0), (1, 1), (1, 1)), mode="reflect")
    weights = {(1, 1): 0.5, (0, 0): 0.25, (2, 2): 0.25}
    logits = np.zeros((6, 3))
    with torch.no_grad():
        for (row, column), weight in weights.items():
            view = padded[:, :, row : row + 32, column : column + 32]
            for mirrored in (view, view[..., ::-1]):
                logits += weight / 2 * trained(torch.from_numpy(mirrored.copy())).numpy()
    for split in ("train", "test"):
        make_parquet(tmp_path / "data" / f"{split}.parquet", random_pixels, logits.argmax(axis=1))
    plain, augmented = command(model_folder, "--data", tmp_path / "data", "--tta").splitlines()
    assert plain.startswith("accuracy ")
    assert augmented == "accuracy with test-time augmentation 100.00% (6 of 6 test images)"
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    expected = exponentials / exponentials.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(classifier.probabilities(random_pixels, tta=True), expected, atol=1e-5)


def test_images_and_data_both_or_neither_are_refused(refusal: Callable[..., str], model_folder: Path) -> None:
    assert "expected either images or --data, not both" in refusal(model_folder)
    assert "expected either images or --data, not both" in refusal(model_folder, "a.png", "--data", "sample")


def test_invalid_top_is_refused(refusal: Callable[..., str], model_folder: Path) -> None:
    assert "--top 0: expected a positive number" in refusal(model_folder, "a.png", "--top", 0)


def test_missing_model_is_refused(refusal: Callable[..., str], tmp_path: Path) -> None:
    assert str(tmp_path / "none") in refusal(tmp_path / "none", "a.png")


def test_missing_image_is_refused(refusal: Callable[..., str], model_folder: Path, image_files: list[Path]) -> None:
    assert "no-such.png" in refusal(model_folder, image_files[0], "no-such.png")


def test_missing_data_is_refused(refusal: Callable[..., str], model_folder: Path, tmp_path: Path) -> None:
    assert f"--data {tmp_path / 'none'} does not exist" in refusal(model_folder, "--data", tmp_path / "none")


@pytest.mark.parametrize("kind", ["empty", "text", "truncated", "bad chunk"])
def test_corrupt_image_is_refused(
    refusal: Callable[..., str], model_folder: Path, image_files: list[Path], kind: str
) -> None:
    content = image_files[0].read_bytes()
    # In "bad chunk", the chunk of pixels has the wrong length.
    pixel_chunk = content.index(b"IDAT")
    broken = {
        "empty": b"",
        "text": b"not an image",
        "truncated": content[: len(content) // 2],
        "bad chunk": content[: pixel_chunk - 2] + b"\0\5" + content[pixel_chunk:],
    }
    image_files[1].write_bytes(broken[kind])
    assert f"{image_files[1]} cannot be read as an image" in refusal(model_folder, *image_files[:2])
