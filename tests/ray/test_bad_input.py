"""Invalid input ends with one line on stderr and exit code 2, and leaves no run folder."""

import io
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from support.command import PATIENCE, main_command, run_main
from vgg_ddp.run import checkpoint
from vgg_ddp.run.storage import Folder


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A local port on which nothing listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def assert_refused(cwd: Path, *flags: object, expected: tuple[str, ...], before: Sequence[str] = ()) -> None:
    command = [*before, *main_command(*flags)]
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=PATIENCE)
    lines = [line for line in result.stderr.splitlines() if line]
    assert result.returncode == 2, result.stderr
    assert len(lines) == 1, result.stderr
    for text in expected:
        assert text in lines[0]
    assert not list(cwd.glob("runs/*"))


def test_more_gpus_than_available_are_refused(tmp_path: Path) -> None:
    flags = ("--device", "gpu", "--num-workers", 64, "--batch-size", 128, "--data", "sample")
    assert_refused(tmp_path, *flags, expected=("--device gpu", "--num-workers 64", "--device cpu"))


def test_gpu_without_ray_is_refused_on_a_machine_without_one(tmp_path: Path) -> None:
    result = run_main("--device", "gpu", "--num-workers", 0, "--data", "sample", cwd=tmp_path, CUDA_VISIBLE_DEVICES="")
    assert result.returncode == 2
    assert "--device gpu" in result.stderr.splitlines()[-1]


def test_address_that_does_not_respond_is_refused(tmp_path: Path, closed_port: int) -> None:
    address = f"127.0.0.1:{closed_port}"
    assert_refused(tmp_path, "--address", address, "--data", "sample", expected=(address, "nothing answers"))


def test_error_does_not_wait_for_decoding(tmp_path: Path, closed_port: int) -> None:
    large = io.BytesIO()
    # Each takes over 0.1 s to decode.
    Image.new("L", (4000, 4000)).save(large, "PNG")
    rows = [{"img": {"bytes": large.getvalue()}, "label": 0}] * 900
    for split in ("train", "test"):
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{split}.parquet")
    address = f"127.0.0.1:{closed_port}"
    started = time.monotonic()
    assert_refused(tmp_path, "--address", address, "--data", tmp_path, expected=(address, "nothing answers"))
    assert time.monotonic() - started < 30


def test_address_auto_without_a_cluster_is_refused(tmp_path: Path) -> None:
    # Ray searches all processes of the machine for a cluster. In a new PID namespace, it sees none but its own.
    alone = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if not shutil.which("unshare") or subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("this machine does not allow PID namespaces")
    assert_refused(
        tmp_path, "--address", "auto", "--data", "sample", expected=("--address auto", "no Ray cluster"), before=alone
    )


def test_storage_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    flags = ("--storage-path", file / "runs", "--data", "sample", "--num-workers", 0)
    assert_refused(tmp_path, *flags, expected=("--storage-path", "cannot be written"))


def test_batch_larger_than_the_training_set_is_refused(tmp_path: Path, tiny_data: Path) -> None:
    flags = ("--data", tiny_data, "--batch-size", 256, "--num-workers", 0)
    assert_refused(tmp_path, *flags, expected=("--batch-size 256", "240 training images"))


def test_broken_image_is_refused_by_file_and_row(tmp_path: Path, tiny_data: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for split in ("train", "test"):
        rows = pq.read_table(tiny_data / f"{split}.parquet").to_pylist()
        if split == "train":
            rows[7]["img"]["bytes"] = rows[7]["img"]["bytes"][:100]
        pq.write_table(pq.read_table(tiny_data / f"{split}.parquet").from_pylist(rows), data / f"{split}.parquet")
    assert_refused(
        tmp_path,
        "--data",
        data,
        "--num-workers",
        0,
        expected=("row 7 of train.parquet", "cannot be decoded"),
    )


def test_resume_from_a_checkpoint_of_another_model_is_refused(tmp_path: Path, tiny_data: Path) -> None:
    flags = ("--num-workers", 0, "--batch-size", 60, "--epochs", 1, "--data", tiny_data, "--run-name", "run")
    assert run_main(*flags, cwd=tmp_path).returncode == 0
    run = Folder.at(str(tmp_path / "runs" / "run"))
    newest = checkpoint.read_newest(run)
    assert newest
    name, state = newest
    parameters = state["replica"]["parameters"]
    parameters["classifier.weight"] = parameters["classifier.weight"][:, :256]
    checkpoint.write(run, name, state)
    result = run_main("--resume", "run", "--epochs", 2, cwd=tmp_path)
    assert result.returncode == 2
    last = result.stderr.splitlines()[-1]
    assert "from another model than the FastVGG11" in last
    assert "classifier.weight is (10, 256) in the checkpoint, and (10, 512) in this model" in last


def test_resume_with_other_images_is_refused(tmp_path: Path, tiny_data: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    flags = ("--num-workers", 0, "--batch-size", 60, "--epochs", 1, "--data", data)
    assert run_main(*flags, "--run-name", "run", cwd=tmp_path).returncode == 0
    pq.write_table(pq.read_table(tiny_data / "train.parquet").slice(0, 120), data / "train.parquet")
    result = run_main("--resume", "run", "--epochs", 2, cwd=tmp_path)
    assert result.returncode == 2
    assert "was trained on other images" in result.stderr.splitlines()[-1]
