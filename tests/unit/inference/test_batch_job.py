"""The rows of the output are counted, and workers fit the cluster; without Ray."""

import signal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from vgg_ddp.data.columns import ColumnNames
from vgg_ddp.flags import UsageError
from vgg_ddp.inference.image_set import find_images
from vgg_ddp.inference.job import Progress, stop
from vgg_ddp.inference.output import SCHEMA, Output
from vgg_ddp.inference.pipeline import Workers, choose_workers


@pytest.fixture
def progress(tmp_path: Path) -> Progress:
    """Of three images in a Parquet file."""
    pq.write_table(pa.table({"image": [b"x"] * 3}), tmp_path / "images.parquet")
    return Progress(find_images(str(tmp_path / "images.parquet"), ColumnNames(), 32))


def rows(count: int) -> pa.Table:
    return pa.Table.from_pylist([{"path": "images.parquet", "class": "ant"}] * count, SCHEMA)


@pytest.mark.parametrize("count", [2, 4])
def test_nothing_is_written_if_the_number_of_images_has_changed(progress: Progress, tmp_path: Path, count: int) -> None:
    output = Output.at(str(tmp_path / "output" / "predictions.parquet"))
    with pytest.raises(UsageError, match=f"the images changed: there were 3, but {count} were read"):
        output.write(progress.follow(iter([rows(1), rows(count - 1)])), ("ant", "bee"))
    assert not (tmp_path / "output").exists()


def test_stopped_job_says_whether_the_output_is_complete(
    progress: Progress, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stop(progress, signal.SIGINT) == 130
    progress.is_written = True
    assert stop(progress, signal.SIGTERM) == 143
    assert capsys.readouterr().out.split("\n\n") == [
        "\nStopped by SIGINT: nothing was written.",
        "Stopped by SIGTERM: the output is complete.\n",
    ]


def test_workers_get_the_gpus_if_there_are_enough(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def choose(device: str, num_workers: int | None, **resources: float) -> Any:
        monkeypatch.setattr(ray, "cluster_resources", lambda: resources)
        return choose_workers(device, num_workers, maximum=5, own_cluster=False)

    assert choose("auto", None, CPU=8.0, GPU=2.0) == Workers(2, True, "auto")
    assert choose("cpu", None, CPU=8.0, GPU=2.0) == Workers(5, False, "cpu")
    assert choose("auto", 3, CPU=8.0) == Workers(3, False, "auto")
    assert capsys.readouterr().out == ""
    assert choose("auto", 3, CPU=8.0, GPU=2.0) == Workers(3, False, "auto")
    expected = "NOTE: 2 GPU(s) for 3 workers: classifying on CPUs. To use GPUs: --num-workers 2.\n"
    assert capsys.readouterr().out == expected
    with pytest.raises(UsageError, match="--device gpu --num-workers 3: Ray sees 2 GPUs; use at most that many"):
        choose("gpu", 3, CPU=8.0, GPU=2.0)
