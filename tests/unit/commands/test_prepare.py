"""prepare.py, run as a command."""

import csv
import io
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
from PIL import Image

from support.command import PREPARE, wait_until
from vgg_ddp.data.dataset import load_dataset, load_split
from vgg_ddp.data.decode import decode_image
from vgg_ddp.data.source import SplitName, find_source
from vgg_ddp.flags import UsageError

Pixels = npt.NDArray[np.uint8]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PREPARE), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100)


@pytest.fixture
def pixels() -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path, pixels: Pixels) -> Path:
    """30 different JPEG files in each of two classes."""
    for name in ("ant", "zäbra"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(30):
            Image.fromarray(np.roll(pixels, i)).save(tmp_path / "images" / name / f"{i}.jpg")
    return tmp_path / "images"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_parquet_files_contain_the_image_bytes_and_classes(folder: Path, tmp_path: Path) -> None:
    result = run(folder, tmp_path / "out", "--test-fraction", 0.2, "--images-per-shard", 20)
    assert result.returncode == 0, result.stderr
    assert "Stored 60 images." in result.stdout
    seen = set()
    counts: dict[SplitName, int] = {"train": 48, "test": 12}
    for split, count in counts.items():
        tables = [pq.read_table(file) for file in sorted((tmp_path / "out").glob(f"{split}-*.parquet"))]
        rows = [row for table in tables for row in table.to_pylist()]
        assert len(rows) == count
        for row in rows:
            assert row["image"]["bytes"] == (folder / row["image"]["path"]).read_bytes()
            assert row["label"] == ("ant", "zäbra").index(row["image"]["path"].split("/")[0])
            seen.add(row["image"]["path"])
        decoded, names = load_split(find_source(str(tmp_path / "out"), "unused"), split, 32)
        assert names == ("ant", "zäbra")
        assert decoded.labels.tolist() == [row["label"] for row in rows]
    assert len(seen) == 60


def test_every_format_is_stored_as_png_or_reported(folder: Path, tmp_path: Path, pixels: Pixels) -> None:
    odd, image = folder / "ant", Image.fromarray(pixels)
    deep = np.arange(480, dtype=np.uint16).reshape(20, 24) * 136
    for name, kind in (("gray.png", "L"), ("palette.png", "P"), ("cmyk.jpg", "CMYK"), ("alpha.png", "RGBA")):
        image.convert(kind).save(odd / name)
    image.save(odd / "animated.gif", save_all=True, append_images=[Image.new("RGB", image.size)])
    for name in ("picture.bmp", "picture.webp", "picture.tiff"):
        image.save(odd / name, lossless=True)
    Image.fromarray(deep).save(odd / "16 bits.png")
    Image.fromarray(deep).save(odd / "16 bits.tiff")
    image.resize((1, 1)).save(odd / "one pixel.png")
    Image.new("RGB", (4000, 4000), (9, 90, 200)).save(odd / "huge.jpg")
    (odd / "nothing.jpg").write_bytes(b"")
    (odd / "text.jpg").write_text("not an image")
    (odd / "cut.jpg").write_bytes((odd / "0.jpg").read_bytes()[:300])
    # A DDS file of an unknown kind, for which Pillow does not raise OSError.
    (odd / "strange.dds").write_bytes(b"DDS " + struct.pack("<7I", 124, 0x1007, 4, 4, 0, 0, 0) + bytes(96))
    (odd / "link.png").symlink_to("nowhere")
    os.mkfifo(odd / "pipe.png")
    result = run(folder, tmp_path / "out", "--test-fraction", 0.01)
    assert result.returncode == 0, result.stderr
    assert "Stored 72 images; 6 files are not images." in result.stdout
    broken = dict(list(csv.reader((tmp_path / "out" / "broken.csv").open()))[1:])
    not_images = ("nothing.jpg", "text.jpg", "cut.jpg", "strange.dds", "link.png", "pipe.png")
    assert broken.keys() == {f"ant/{name}" for name in not_images}
    assert broken["ant/text.jpg"] == "not an image in a known format"
    stored = {}
    for file in (tmp_path / "out").glob("*.parquet"):
        for row in pq.read_table(file).to_pylist():
            stored[row["image"]["path"].removeprefix("ant/")] = row["image"]["bytes"]
    for name in ("animated.gif", "picture.bmp", "picture.webp", "picture.tiff"):
        with Image.open(io.BytesIO(stored[name])) as png:
            assert png.format == "PNG"
            expected = Image.open(odd / name).convert("RGB")
            np.testing.assert_array_equal(np.asarray(png), np.asarray(expected))
    for name in ("16 bits.png", "16 bits.tiff"):
        gray = decode_image(stored[name], 32)[..., 0]
        assert (gray.min(), gray.max()) == (0, 254)
    assert decode_image(stored["huge.jpg"], 32)[5, 5] == pytest.approx([9, 90, 200], abs=3)
    stored_dataset = load_dataset(find_source(str(tmp_path / "out"), "unused"), 32)
    assert stored_dataset.num_train + stored_dataset.num_test == 72


def test_unreadable_file_stops_the_command_and_a_retry_stores_it(folder: Path, tmp_path: Path) -> None:
    # A regular file that even root cannot read.
    (folder / "ant" / "unreadable.jpg").symlink_to("/proc/self/mem")
    result = run(folder, tmp_path / "out", "--images-per-shard", 20)
    assert result.returncode == 2
    assert re.fullmatch(r"error: .*/ant/unreadable.jpg cannot be read: Input/output error.\n", result.stderr)
    (folder / "ant" / "unreadable.jpg").unlink()
    shutil.copy(folder / "ant" / "0.jpg", folder / "ant" / "unreadable.jpg")
    result = run(folder, tmp_path / "out", "--images-per-shard", 20)
    assert "Stored 61 images." in result.stdout


def make_unreadable(*files: Path) -> None:
    for file in files:
        file.write_bytes(b"\x00\x00\x00\x18ftypheic" + bytes(500))


@pytest.mark.parametrize("splits", [("train", "test"), ("train",), ("test",)])
def test_split_of_which_no_image_can_be_read_is_refused(folder: Path, tmp_path: Path, splits: tuple[str, ...]) -> None:
    for split in ("train", "test"):
        shutil.copytree(folder, tmp_path / "splits" / split)
    files = [file for split in splits for file in sorted((tmp_path / "splits" / split).glob("*/*"))]
    make_unreadable(*files)
    result = run(tmp_path / "splits", tmp_path / "out", "--images-per-shard", 20)
    assert result.returncode == 2
    kinds = " and ".join({"train": "training", "test": "test"}[split] for split in splits)
    first = min(str(file.relative_to(tmp_path / "splits")) for file in files)
    assert result.stderr.startswith(
        f"error: none of the {len(files)} {kinds} files is a readable image; the first is {first}: "
    )
    assert result.stderr.count("\n") == 1 and "Train on them" not in result.stdout
    left = {file.name.split("-")[0] for file in (tmp_path / "out").glob("*.parquet")}
    assert left == {"train", "test"} - set(splits)
    assert len((tmp_path / "out" / "broken.csv").read_text().splitlines()) == 1 + len(files)


def test_what_is_odd_about_the_folder_is_printed(tmp_path: Path, pixels: Pixels) -> None:
    for name in ("a", "b", "a/@eaDir", "__MACOSX/a"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{i}.png")
    (tmp_path / "images" / os.fsdecode(b"\xff.png")).write_bytes(b"")
    result = run(tmp_path / "images", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert [line for line in result.stdout.splitlines() if line.startswith("NOTE: ")] == [
        f"NOTE: ignored 1 image(s) in {tmp_path}/images that are not in a class folder, such as \\xff.png.",
        "NOTE: skipped 2 hidden or system folder(s) (@eaDir, __MACOSX).",
        "NOTE: the 4 training images that were checked are all the same once decoded: nothing can be learned from "
        "them.",
    ]


def test_images_can_be_resized(folder: Path, tmp_path: Path) -> None:
    assert run(folder, tmp_path / "out", "--image-size", 16).returncode == 0
    for file in (tmp_path / "out").glob("*.parquet"):
        for row in pq.read_table(file).to_pylist():
            with Image.open(io.BytesIO(row["image"]["bytes"])) as image:
                assert (image.format, image.size) == ("PNG", (16, 16))
            original = (folder / row["image"]["path"]).read_bytes()
            np.testing.assert_array_equal(decode_image(row["image"]["bytes"], 16), decode_image(original, 16))


def test_killed_command_continues_and_produces_the_same_bytes(tmp_path: Path) -> None:
    # Converting these to PNG is slow enough to kill the command halfway through.
    for path in (tmp_path / "images" / name / f"{i}.bmp" for name in ("ant", "bee") for i in range(4)):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((600, 600), 50).convert("RGB").save(path)
    flags = (tmp_path / "images", "--images-per-shard", 1, "--processes", 1)
    assert run(*flags, tmp_path / "uninterrupted").returncode == 0
    output = tmp_path / "out"
    command = [sys.executable, str(PREPARE), *map(str, flags), str(output)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        wait_until(lambda: len(list(output.glob("*.parquet"))) > 1, seconds=60)
        process.send_signal(signal.SIGKILL)
    complete = {path: path.stat().st_mtime_ns for path in output.glob("*.parquet")}
    assert 1 < len(complete) < len(contents(tmp_path / "uninterrupted"))
    for name in ("train-00000-of-00006.parquet", "test-00000-of-00009.parquet"):
        (output / f"{name}.0123abcd.tmp").write_bytes(b"partial")
    result = run(*flags, output)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("already written") == len(complete)
    assert contents(output) == contents(tmp_path / "uninterrupted")
    assert {path: path.stat().st_mtime_ns for path in complete} == complete


def test_changed_image_is_updated_and_other_shards_are_untouched(folder: Path, tmp_path: Path) -> None:
    flags = (folder, tmp_path / "out", "--images-per-shard", 20)
    run(*flags)
    before = contents(tmp_path / "out")
    (folder / "ant" / "3.jpg").write_bytes((folder / "ant" / "4.jpg").read_bytes())
    assert run(*flags).stdout.count("already written") == len(before) - 1
    after = contents(tmp_path / "out")
    assert sum(before[name] != after[name] for name in before) == 1


def test_interrupted_conversion_of_changed_images_leaves_no_mixture(folder: Path, tmp_path: Path) -> None:
    flags = (folder, tmp_path / "out", "--images-per-shard", 10, "--processes", 1)
    assert run(*flags).returncode == 0
    for file in (folder / "ant").iterdir():
        file.rename(file.with_stem(f"new {file.stem}"))
    command = [sys.executable, "-u", str(PREPARE), *map(str, flags)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        next(line for line in process.stdout if line.startswith("1/"))
        process.kill()
        process.communicate(timeout=100)
    # All of the old shards are gone, so the rest is incomplete, or all new ones were already written.
    tables = [pq.read_table(file) for file in (tmp_path / "out").glob("*.parquet")]
    assert all((folder / row["image"]["path"]).exists() for table in tables for row in table.to_pylist())
    if len(tables) < 7:
        with pytest.raises(UsageError, match=r"is incomplete: |but no test or validation split"):
            find_source(str(tmp_path / "out"), "unused")
    assert run(*flags).returncode == 0
    stored = load_dataset(find_source(str(tmp_path / "out"), "unused"), 32)
    assert stored.num_train + stored.num_test == 60


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["no-such-folder", "out"], "no-such-folder is not a folder"),
        (["images", "out", "--test-fraction", "1"], "--test-fraction 1.0: expected a number between 0 and 1"),
        (["images", "out", "--processes", "0"], "--processes 0: expected a positive number"),
        (["images", "abc://x"], "abc://x cannot be used"),
        (["images", "full"], "contains train-1.parquet, made from other images"),
        (["images", "plain"], "contains test.parquet, made from other images"),
        (["images", "upper"], "contains Training_0.parquet, made from other images"),
        (["images", "other"], "contains train-00000-of-00002.parquet, made from other images"),
        (["images", "foreign"], "contains train-00000-of-00001.parquet, which prepare.py did not write or which is"),
        (["images", "images/out"], "OUTPUT images/out is inside IMAGE_FOLDER, and would become a class"),
        (["images", "o\udcfe"], "cannot be used: "),
    ],
)
def test_invalid_input_is_reported_in_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], expected: str
) -> None:
    monkeypatch.chdir(folder.parent)
    for file in (
        "foreign/train-00000-of-00001.parquet",
        "full/train-1.parquet",
        "plain/test.parquet",
        "upper/Training_0.parquet",
        "other/train-00000-of-00002.parquet",
    ):
        Path(file).parent.mkdir()
        Path(file).write_bytes(b"")
    result = run(*arguments)
    assert result.returncode == 2
    assert expected in result.stderr and result.stderr.count("\n") == 1


def test_files_that_belong_to_no_split_are_left_alone(folder: Path, tmp_path: Path) -> None:
    others = ("train_full.parquet", "trains.parquet", "validation.parquet", "train.parquet.tmp", "notes.txt")
    (tmp_path / "out").mkdir()
    for name in others:
        (tmp_path / "out" / name).write_bytes(b"")
    assert run(folder, tmp_path / "out").returncode == 0
    assert contents(tmp_path / "out").keys() > set(others)


def test_unwritable_output_is_reported_in_one_line(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    result = run(folder, tmp_path / "file")
    assert result.returncode in (1, 2)
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
