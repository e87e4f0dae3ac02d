"""One Ray cluster per module for tests that train in this process."""

import dataclasses
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray
from ray.train import Result, TrainingFailedError, UserCallback

from support.command import SAMPLE
from vgg_ddp.compat.ray_constants import restored_network_setting
from vgg_ddp.config import TrainConfig
from vgg_ddp.data.dataset import Dataset, load_dataset
from vgg_ddp.data.source import find_source
from vgg_ddp.driver import cluster, ray_environment
from vgg_ddp.driver.trainer import build_trainer
from vgg_ddp.job import Inputs, Job, Outcome
from vgg_ddp.run.files import Row, read_metrics
from vgg_ddp.run.storage import Folder
from vgg_ddp.worker.failures import diverged_outcome
from vgg_ddp.worker.train import train_loop

Train = Callable[..., tuple[Outcome, list[Row]]]
Fit = Callable[..., tuple[Result, Folder]]


def new_name() -> str:
    return f"run-{uuid.uuid4().hex[:6]}"


@pytest.fixture(scope="module")
def ray_cluster(private_home: Path) -> Iterator[None]:  # noqa: ARG001 - Ray has to start in the private home
    environment = dict(os.environ)
    with restored_network_setting():
        cluster.connect(ray_environment.prepare("local"))
        yield
        ray.shutdown()
    # The settings of a one-machine cluster would break tests with several nodes.
    os.environ.clear()
    os.environ.update(environment)


@pytest.fixture(scope="session")
def tiny_dataset(tiny_data: Path) -> Dataset:
    return load_dataset(find_source(str(tiny_data), ""), 32)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return Folder.at(str(tmp_path_factory.mktemp("runs")))


@pytest.fixture(scope="module")
def fit(
    ray_cluster: None,  # noqa: ARG001 - needs the cluster
    tiny_dataset: Dataset,
    runs: Folder,
) -> Fit:
    """Train on the tiny data on the shared cluster; return Ray's result and the run folder."""

    def run(
        num_workers: int,
        stop_requested: Callable[[], bool] | None = None,
        run_name: str | None = None,
        lock_file: str | None = None,
        loop: Callable[..., Outcome] = train_loop,
        callbacks: Sequence[UserCallback] = (),
        **settings: object,
    ) -> tuple[Result, Folder]:
        config = dataclasses.replace(
            TrainConfig(num_workers=1, batch_size=24, recipe="classic", precision="fp32"),
            num_workers=num_workers,
            **settings,
        )
        folder = runs / (run_name or new_name())
        inputs = ray.put(Inputs(tiny_dataset))
        job = Job(config, inputs, folder, False, False, lock_file, stop_requested=stop_requested)
        placement = cluster.place_workers(config)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("vgg_ddp.driver.trainer.train_loop", loop)
            trainer = build_trainer(job, folder, placement.resources_per_worker, own_cluster=True, callbacks=callbacks)
        return trainer.fit(), folder

    return run


@pytest.fixture(scope="module")
def train(fit: Fit, runs: Folder) -> Train:
    """Train on the tiny data on the shared cluster; return the outcome and the rows of metrics."""

    def run(*arguments: object, **settings: object) -> tuple[Outcome, list[Row]]:
        settings = {"run_name": new_name()} | settings
        rows = runs / settings["run_name"]
        try:
            return fit(*arguments, **settings)[0].return_value, read_metrics(rows)
        except TrainingFailedError as error:
            outcome = diverged_outcome(error)
            if not outcome:
                raise
            return outcome, read_metrics(rows)

    return run


@pytest.fixture(scope="session")
def numbered_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """230 training images in six row groups and 61 test images in three; each label is the image's index."""
    folder = tmp_path_factory.mktemp("stream")
    for split, count, rows in (("train", 230, 40), ("test", 61, 25)):
        table = pq.read_table(SAMPLE / f"{split}.parquet").slice(0, count)
        column = table.schema.get_field_index("label")
        table = table.set_column(column, "label", [list(range(count))])
        # Each image is its own class.
        pq.write_table(table.replace_schema_metadata(), folder / f"{split}.parquet", row_group_size=rows)
    return folder
