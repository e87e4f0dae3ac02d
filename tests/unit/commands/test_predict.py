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


def test_files_data_and_images_exclude_each_other(refusal: Callable[..., str], model_folder: Path) -> None:
    assert "no input: name image files, or use --data or --images" in refusal(model_folder)
    for flags in (("a.png", "--data", "sample"), ("a.png", "--images", "folder", "--output", "x.parquet")):
        assert "use only one of image files, --data, and --images" in refusal(model_folder, *flags)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--images", "folder"), "--images folder requires --output"),
        (("--data", "sample", "--output", "x.parquet"), "--output x.parquet applies only to --images"),
        (("a.png", "--num-workers", 2), "apply only to --images"),
        (("a.png", "--device", "cpu"), "apply only to --images"),
        (
            ("--images", "folder", "--output", "x.parquet", "--label-column", "y"),
            "--label-column applies only to --data",
        ),
        (("--images", "folder", "--output", "x.parquet", "--num-workers", 0), "--num-workers 0: expected a positive"),
        (("--images", "s3://key:secret@b/x", "--output", "x.parquet"), "--images: the URI contains a password"),
        (("--images", "folder", "--output", "s3://key:secret@b/x.parquet"), "--output: the URI contains a password"),
        (("--images", "folder", "--output", "x.parquet", "--address", "head"), "--address head: expected HOST:PORT"),
        (("--images", "folder", "--output", "x.csv"), "--output x.csv: expected the name of a .parquet file"),
    ],
)
def test_flags_that_do_not_fit_are_refused(
    refusal: Callable[..., str], model_folder: Path, flags: tuple[object, ...], expected: str
) -> None:
    assert expected in refusal(model_folder, *flags)


@pytest.fixture
def refused_images(refusal: Callable[..., str], model_folder: Path, tmp_path: Path) -> Callable[..., str]:
    """Refuse to classify --images, without starting Ray or leaving a file."""

    def run(images: object, *flags: object, model: object = model_folder) -> str:
        error = refusal(model, "--images", images, "--output", tmp_path / "predictions.parquet", *flags)
        assert not list(tmp_path.glob("*predictions*"))
        return error

    return run


def test_images_that_cannot_be_found_are_refused(
    refused_images: Callable[..., str], tmp_path: Path, image_files: list[Path]
) -> None:
    (tmp_path / "empty" / ".hidden").mkdir(parents=True)
    (tmp_path / "empty" / ".hidden" / "a.png").write_bytes(b"")
    assert f"--images {tmp_path / 'none'} does not exist" in refused_images(tmp_path / "none")
    assert f"--images {tmp_path / 'empty'} is empty" in refused_images(tmp_path / "empty")
    assert "neither a folder nor a .parquet file; to classify single images" in refused_images(image_files[0])
    assert "--images nonsense://x cannot be read" in refused_images("nonsense://x")
    assert "--image-column pixels: --images" in refused_images(tmp_path, "--image-column", "pixels")


def test_folder_of_the_output_is_not_created_for_images_that_are_refused(
    refused_images: Callable[..., str], tmp_path: Path
) -> None:
    assert "does not exist" in refused_images(tmp_path / "none", "--output", tmp_path / "new" / "y.parquet")
    assert not (tmp_path / "new").exists()


def test_parquet_files_without_images_are_refused(
    refused_images: Callable[..., str], tmp_path: Path, make_parquet: Callable[..., Path], random_pixels: Pixels
) -> None:
    file = make_parquet(tmp_path / "rows" / "a.parquet", random_pixels, range(6), column="photo")
    assert "a.parquet has no column named image or img; it has photo" in refused_images(file)
    assert "--image-column pixels" in refused_images(file.parent, "--image-column", "pixels")
    assert "column label of" in refused_images(file, "--image-column", "label")
    (tmp_path / "rows" / "b.png").write_bytes(b"")
    assert "has Parquet files, such as a.parquet, and others, such as b.png" in refused_images(file.parent)
    (tmp_path / "rows" / "c.parquet").write_bytes(b"no Parquet")
    assert "c.parquet cannot be read as Parquet" in refused_images(tmp_path / "rows" / "c.parquet")
    make_parquet(tmp_path / "none" / "a.parquet", [], [])
    assert "has no rows in a.parquet" in refused_images(tmp_path / "none")


def test_model_that_is_missing_or_of_another_program_is_refused_for_many_images(
    refused_images: Callable[..., str], tmp_path: Path, image_files: list[Path]
) -> None:
    assert image_files and "expected a folder of a finished run" in refused_images(tmp_path, model=tmp_path / "none")
    (tmp_path / "model.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    assert "cannot be loaded as a model of this program" in refused_images(tmp_path, model=tmp_path)


def test_output_that_exists_or_cannot_be_written_is_refused(
    refusal: Callable[..., str], model_folder: Path, image_files: list[Path], tmp_path: Path
) -> None:
    old, blocked = tmp_path / "old.parquet", image_files[0] / "new.parquet"
    old.write_bytes(b"old")
    images = ("--images", tmp_path)
    assert f"--output {old} exists already" in refusal(model_folder, *images, "--output", old)
    assert old.read_bytes() == b"old"
    old.unlink()
    assert f"--output {blocked} cannot be written: Not a directory." in refusal(
        model_folder, *images, "--output", blocked
    )


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
