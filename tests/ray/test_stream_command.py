"""Runs whose images are decoded during training, started from the command line."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from support.command import PATIENCE, ROOT, main_command, run_main, started, wait_until
from vgg_ddp.machine.limits import usable_cores

pytestmark = pytest.mark.slow


def test_terminated_streaming_run_resumes_to_the_same_weights(numbered_images: Path, tmp_path: Path) -> None:
    flags = ("--data", numbered_images, "--ingest", "stream", "--num-workers", 2, "--batch-size", 14, "--epochs", 2)
    flags += ("--recipe", "classic", "--precision", "fp32", "--lr", 0.02)
    undisturbed = run_main(*flags, "--run-name", "undisturbed", cwd=tmp_path)
    assert undisturbed.returncode == 0, undisturbed.stdout + undisturbed.stderr
    assert "230 training and 61 test images, 230 classes, decoded during training" in undisturbed.stdout
    # Ray Data prints nothing.
    assert "pid=" not in undisturbed.stdout and undisturbed.stderr == ""
    with started(tmp_path, main_command(*flags, "--run-name", "stopped")) as process:
        wait_until(lambda: (tmp_path / "runs/stopped/startup.json").exists())
        process.terminate()
        output, _ = process.communicate(timeout=PATIENCE)
    stopped = re.search(r"Stopped after step (\d+)", output)
    assert process.returncode == 143 and stopped and int(stopped[1]) < 32, output
    resumed = run_main("--resume", "stopped", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    models = [(tmp_path / "runs" / name / "model.safetensors").read_bytes() for name in ("undisturbed", "stopped")]
    assert models[0] == models[1]


@pytest.mark.parametrize("split", ["train", "test"])
def test_undecodable_image_ends_the_run_and_is_named(split: str, numbered_images: Path, tmp_path: Path) -> None:
    shutil.copytree(numbered_images, tmp_path / "data")
    file = tmp_path / "data" / f"{split}.parquet"
    table = pq.read_table(file)
    name = table.schema.names[0]
    images = table.column(name).to_pylist()
    # The driver decodes only examples from the start of each row group; an epoch uses every image.
    images[-1] = {"bytes": b"no image", "path": None}
    table = table.set_column(0, name, pa.array(images, table.schema.field(name).type))
    pq.write_table(table, file, row_group_size=500)
    for other in ("train", "test"):
        # More images than the driver decodes as examples.
        path = tmp_path / "data" / f"{other}.parquet"
        pq.write_table(pa.concat_tables([pq.read_table(path).slice(0, 60)] * 85 + [pq.read_table(path)]), path)
    flags = ("--data", tmp_path / "data", "--ingest", "stream", "--num-workers", 2, "--batch-size", 1066, "--epochs", 1)
    result = run_main(*flags, cwd=tmp_path)
    assert result.returncode == 2, result.stdout + result.stderr
    (line,) = result.stderr.splitlines()
    assert re.match(rf"error: the image in row \d+ of {split}.parquet cannot be decoded \(not PNG or JPEG\)", line)


def test_elastic_workers_on_all_cpus_leave_room_for_decoding(numbered_images: Path, tmp_path: Path) -> None:
    # An elastic run starts all workers that fit: two per core.
    workers = 2 * usable_cores()
    flags = ("--data", numbered_images, "--ingest", "stream", "--device", "cpu", "--epochs", 1)
    flags += ("--min-workers", 1, "--num-workers", workers, "--batch-size", 2 * workers, "--recipe", "classic")
    result = run_main(*flags, cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr


# Four tasks at once on one CPU, then a pause longer than Ray's default idle limit.
PAUSE = """
import os
import sys
import time
from pathlib import Path

from vgg_ddp.driver import ray_environment

ray_environment.prepare(None, streamed=sys.argv[1] == "streamed")

import psutil
import ray

ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
here = Path(sys.argv[2])

@ray.remote(num_cpus=0.25)
def decode(number):
    (here / str(number)).touch()
    while len(list(here.iterdir())) < 4:
        time.sleep(0.1)
    return os.getpid()

pids = ray.get([decode.remote(number) for number in range(4)])
time.sleep(8)
print(len(set(pids)), sum(psutil.pid_exists(pid) for pid in pids))
"""


def test_decoding_processes_survive_a_pause(tmp_path: Path) -> None:
    counts = {}
    for kind in ("streamed", "plain"):
        folder = tmp_path / kind
        folder.mkdir()
        command = [sys.executable, "-c", PAUSE, kind, str(folder)]
        result = subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=ROOT / "ray_app", timeout=PATIENCE
        )
        running, alive = map(int, result.stdout.split())
        assert running == 4
        counts[kind] = alive
    assert counts["streamed"] == 4 > counts["plain"]
