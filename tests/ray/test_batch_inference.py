"""predict.py --images: many images, classified through Ray Data."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from PIL import Image

from support.command import PREDICT, SAMPLE, free_port, marked_processes, started, wait_until
from support.random_model import write_random_model
from support.s3_server import BUCKET, CREDENTIALS, client, s3_server
from vgg_ddp.data.decode import decode_image
from vgg_ddp.flags import UsageError
from vgg_ddp.inference.job import BatchJob, classify_images
from vgg_ddp.inference.predictor import Predictor
from vgg_ddp.run.storage import Folder

Rows = list[dict[str, Any]]
Classify = Callable[..., Rows]
# Of CPU time, which an actor needs before its first image.
SECONDS_TO_START = 4
CLASSES = tuple(f"class {index}" for index in range(10))


@pytest.fixture(scope="module")
def model(encoded: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run folder with a model whose predictions differ from image to image."""
    pixels = np.stack([decode_image(content, 32) for content in encoded[:20]])
    return str(write_random_model(tmp_path_factory.mktemp("model"), pixels, CLASSES, logits_scale=40))


@pytest.fixture(scope="module")
def encoded() -> list[bytes]:
    """700 images, so three chunks."""
    return [cell["bytes"] for cell in pq.read_table(SAMPLE / "test.parquet")["img"][:700].to_pylist()]


@pytest.fixture(scope="module")
def photos(encoded: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images in a folder and its subfolder, two of which are damaged."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "sub").mkdir()
    for index, content in enumerate(encoded):
        (folder / ("sub" if index % 2 else ".") / f"{index:03}.png").write_bytes(content)
    Image.fromarray(np.full((50, 80, 3), 99, np.uint8)).save(folder / "gray.jpg")
    (folder / "cut.png").write_bytes(encoded[0][:500])
    (folder / "sub" / "text.png").write_text("text")
    return folder


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """A simulated S3, with its credentials in the environment."""
    with s3_server(free_port()) as url, pytest.MonkeyPatch.context() as patch:
        for name, value in (CREDENTIALS | {"AWS_ENDPOINT_URL": url}).items():
            patch.setenv(name, value)
        yield url


@pytest.fixture(scope="module")
def classify(
    endpoint: str,  # noqa: ARG001 - before the cluster, whose processes inherit the credentials
    ray_cluster: None,  # noqa: ARG001 - needs the cluster
    model: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Classify:
    """Classify images on the shared cluster; return the rows of the output."""

    def run(images: object, output: object = None, **flags: Any) -> Rows:
        output = output or tmp_path_factory.mktemp("output") / "predictions.parquet"
        settings = {
            "model": model,
            "image_column": None,
            "device": "auto",
            "address": None,
            "num_workers": None,
            "tta": False,
        }
        assert classify_images(BatchJob(images=str(images), output=str(output), **settings | flags)) == 0
        rows: Rows = read(str(output)).to_pylist()
        return rows

    return run


@pytest.fixture(scope="module")
def photo_rows(classify: Classify, photos: Path) -> Rows:
    return classify(photos)


def read(location: str) -> pa.Table:
    path, name = location.rsplit("/", 1)
    return pq.read_table(pa.BufferReader(Folder.at(path).read(name)))


def expected_rows(model: str, files: list[Path], tmp_path: Path) -> list[tuple[str, str]]:
    """Class and percentage of each file, as predict.py prints them."""
    command = [sys.executable, str(PREDICT), model, *map(str, files), "--top", "1"]
    printed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    return re.findall(r"  (class \d) ([\d.]+%)$", printed, re.MULTILINE)


def test_folder_gives_a_row_per_file_in_order_as_if_classified_one_by_one(
    photo_rows: Rows, model: str, photos: Path, tmp_path: Path
) -> None:
    files = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.*") if path.is_file())
    assert [row["path"] for row in photo_rows] == files
    bad = {row["path"]: row["error"] for row in photo_rows if row["error"]}
    assert bad == {"cut.png": "image file is truncated", "sub/text.png": "not an image in a known format"}
    assert all(row["class"] is row["probability"] is row["probabilities"] is None for row in photo_rows if row["error"])
    assert all(row["row"] is None for row in photo_rows)
    good = [row for row in photo_rows if not row["error"]]
    shown = [(row["class"], f"{row['probability']:.1%}") for row in good[:300]]
    assert shown == expected_rows(model, [photos / row["path"] for row in good[:300]], tmp_path)
    for row in good:
        assert sum(row["probabilities"]) == pytest.approx(1, abs=1e-5)
        assert row["probability"] == max(row["probabilities"])
        assert row["class"] == CLASSES[int(np.argmax(row["probabilities"]))]


def test_parquet_files_give_file_and_row_and_need_no_labels(
    classify: Classify, photo_rows: Rows, encoded: list[bytes], tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    # One row group of two chunks; two row groups with a file that is missing, and an empty image.
    pq.write_table(pa.table({"photo": encoded[:400]}), data / "a.parquet")
    cells = [{"bytes": content, "path": None} for content in (*encoded[400:450], None, b"")]
    cells[50]["path"] = "none.png"
    pq.write_table(pa.table({"photo": cells}), data / "b.parquet", row_group_size=30)
    rows = classify(data, image_column="photo", num_workers=1)
    places = [("a.parquet", index) for index in range(400)] + [("b.parquet", index) for index in range(52)]
    assert [(row["path"], row["row"]) for row in rows] == places
    assert [row["row"] for row in rows if row["error"]] == [50, 51]
    assert "none.png, which cannot be read: it does not exist" in rows[450]["error"]
    assert rows[451]["error"] == "empty file"
    of_files = {row["path"].rpartition("/")[2]: row for row in photo_rows}
    for index, row in enumerate(rows[:450]):
        np.testing.assert_allclose(row["probabilities"], of_files[f"{index:03}.png"]["probabilities"], atol=1e-5)


def test_images_and_output_may_be_on_s3(classify: Classify, photo_rows: Rows, photos: Path, endpoint: str) -> None:
    names = ["000.png", "002.png", "cut.png", "sub/001.png"]
    for name in names:
        client(endpoint).upload_file(str(photos / name), BUCKET, f"photos/{name}")
    rows = classify(f"s3://{BUCKET}/photos", f"s3://{BUCKET}/out/predictions.parquet")
    keys = [item["Key"] for item in client(endpoint).list_objects_v2(Bucket=BUCKET, Prefix="out/")["Contents"]]
    # pyarrow also creates objects for folders.
    assert [key for key in keys if not key.endswith("/")] == ["out/predictions.parquet"]
    expected = [row for row in photo_rows if row["path"] in names]
    assert [(row["path"], row["class"], row["error"]) for row in rows] == [
        (row["path"], row["class"], row["error"]) for row in expected
    ]


def test_images_of_which_none_can_be_read_are_refused(classify: Classify, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    os.link(photos / "cut.png", tmp_path / "bad" / "cut.png")
    with pytest.raises(UsageError, match=r"none of the 1 files in .* can be read: cut.png: image file is truncated"):
        classify(tmp_path / "bad", tmp_path / "predictions.parquet")
    assert not (tmp_path / "predictions.parquet").exists()


def test_damaged_model_is_refused_without_a_traceback(
    classify: Classify, model: str, photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    content = Path(model, "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[:-1000])
    with pytest.raises(UsageError, match="cannot be loaded as a model of this program"):
        classify(photos, tmp_path / "predictions.parquet", model=str(tmp_path))
    assert not (tmp_path / "predictions.parquet").exists()
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.usefixtures("ray_cluster")
def test_actor_without_a_usable_gpu_uses_the_cpu_or_refuses(model: str) -> None:
    content = Path(model, "model.safetensors").read_bytes()

    def use(device: str) -> str:
        predictor = Predictor(ray.put(content), model, device, tta=False)
        found = predictor._classifier
        return str(found) if isinstance(found, UsageError) else found.mean.device.type

    classifier, refusal = ray.get([ray.remote(use).remote(device) for device in ("auto", "gpu")])
    assert classifier == "cpu"
    assert refusal.startswith("--device gpu: torch ") and refusal.endswith(", or use --device cpu.")


def make_many(photos: Path, folder: Path, count: int = 2000) -> int:
    """A folder that repeats images; return after how many."""
    files = sorted((photos / "sub").glob("[0-9]*.png"))
    folder.mkdir()
    for index in range(count):
        os.link(files[index % len(files)], folder / f"{index:05}.png")
    return len(files)


def busy_actors(processes: list[psutil.Process]) -> list[psutil.Process]:
    """The actors among these processes that have started to classify."""
    found = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            if process.name().startswith("ray::MapWorker") and process.cpu_times().user > SECONDS_TO_START:
                found.append(process)
    return found


def test_killed_actor_does_not_change_the_result(classify: Classify, photos: Path, tmp_path: Path) -> None:
    period = make_many(photos, tmp_path / "many")
    killed = []

    def kill_an_actor() -> None:
        wait_until(lambda: bool(busy_actors(psutil.Process().children(recursive=True))))
        victim = busy_actors(psutil.Process().children(recursive=True))[0]
        victim.kill()
        killed.append(victim.pid)

    killer = threading.Thread(target=kill_an_actor)
    killer.start()
    rows = classify(tmp_path / "many")
    killer.join()
    assert killed
    assert [row["path"] for row in rows] == [f"{index:05}.png" for index in range(2000)]
    for index, row in enumerate(rows):
        assert not row["error"]
        np.testing.assert_allclose(row["probabilities"], rows[index % period]["probabilities"], atol=1e-5)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_command_leaves_no_output_and_no_processes(
    model: str, photos: Path, tmp_path: Path, number: signal.Signals
) -> None:
    make_many(photos, tmp_path / "many", 10_000)
    output = tmp_path / "output" / "predictions.parquet"
    command = [sys.executable, str(PREDICT), model, "--images", str(tmp_path / "many"), "--output", str(output)]
    log = tmp_path / "log"
    with started(tmp_path, command, log) as process:
        wait_until(lambda: bool(busy_actors([psutil.Process(pid) for pid in marked_processes(tmp_path.name)])))
        process.send_signal(number)
        code = process.wait()
        wait_until(lambda: not marked_processes(tmp_path.name))
    assert code == (130 if number == signal.SIGINT else -signal.SIGKILL)
    assert (log.read_text().splitlines()[-1] == "Stopped by SIGINT: nothing was written.") == (number == signal.SIGINT)
    assert list(output.parent.iterdir()) == []
