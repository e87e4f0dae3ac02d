"""What the driver settles before anything starts."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vgg_ddp.config import TrainConfig
from vgg_ddp.data import Dataset, Split
from vgg_ddp.flags import UsageError
from vgg_ddp.launch import launch, require_a_batch
from vgg_ddp.report import Row, write_config, write_metrics
from vgg_ddp.storage import Folder


def make_dataset(train_images: int) -> Dataset:
    train = Split(np.zeros((train_images, 32, 32, 3), np.uint8), np.zeros(train_images, np.int64))
    return Dataset("blank", train, train, ("only",), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def test_batch_may_hold_all_images_but_no_more() -> None:
    config = TrainConfig(batch_size=8)
    require_a_batch(config, make_dataset(8))
    with pytest.raises(UsageError, match="--batch-size 8: there are only 7 training images"):
        require_a_batch(config, make_dataset(7))


def test_finished_run_is_not_trained_again(
    run: Folder, make_rows: Callable[[int], list[Row]], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--run-name", "run", "--epochs", "2", "--storage-path", str(Path(run.path).parent)]
    config = TrainConfig(run_name="run", epochs=2, storage_path=str(Path(run.path).parent))
    write_config(run, config.to_dict())
    write_metrics(run, make_rows(2))
    run.write("model.safetensors", b"")
    files = run.names()
    assert launch(config, arguments, 0.0) == 0
    printed = capsys.readouterr().out
    assert "Run run is finished already" in printed
    assert f"test accuracy      {make_rows(2)[1]['test_accuracy']:.2%}" in printed
    assert run.names() == files


@pytest.mark.parametrize("data", ["no/such/folder", "nosuch://bucket"])
def test_missing_data_is_told_before_a_run_folder_is_made(tmp_path: Path, data: str) -> None:
    config = TrainConfig(data=data, storage_path=str(tmp_path / "runs"))
    with pytest.raises(UsageError, match=f"--data .*{data}"):
        launch(config, [], 0.0)
    assert not (tmp_path / "runs").exists()
