"""Training with several Ray workers."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import ray
from ray.util import get_node_ip_address
from ray.util.state import list_actors

from vgg_ddp.config import TrainConfig
from vgg_ddp.driver.cluster import place_workers
from vgg_ddp.flags import UsageError
from vgg_ddp.job import Job, Outcome
from vgg_ddp.run.files import Row
from vgg_ddp.run.storage import Folder
from vgg_ddp.run.versions import VersionedFile

Train = Callable[..., tuple[Outcome, list[Row]]]


def make_loop_without_batch_norm() -> Callable[..., Outcome]:
    """The training loop for a model whose gradients do not depend on how a batch is split."""

    # Ray pickles a nested function by value, so the workers do not import the tests.
    def loop(settings: dict[str, Job]) -> Outcome:
        from torch import nn

        from vgg_ddp.worker import model
        from vgg_ddp.worker.train import train_loop

        def build_without_batch_norm(recipe: str, num_classes: int, seed: int) -> nn.Module:
            built = build_model(recipe, num_classes, seed)
            built.features = nn.Sequential(
                *(layer for layer in built.features if not isinstance(layer, nn.BatchNorm2d))
            )
            return built

        build_model, model.build_model = model.build_model, build_without_batch_norm
        try:
            return train_loop(settings)
        finally:
            model.build_model = build_model

    return loop


SETTINGS = {"loop": make_loop_without_batch_norm(), "epochs": 2, "lr": 0.01}


@pytest.fixture(scope="module")
def curves(train: Train) -> dict[int, list[Row]]:
    """The metrics of undisturbed runs of one and of three workers, without batch normalization."""
    curves = {}
    for num_workers in (1, 3):
        outcome, rows = train(num_workers, **SETTINGS)
        assert (outcome.kind, len(rows)) == ("finished", 2)
        curves[num_workers] = rows
    return curves


def assert_same_losses(ours: list[Row], reference: list[Row]) -> None:
    for row, expected in zip(ours, reference, strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert row["test_loss"] == pytest.approx(expected["test_loss"], rel=1e-5)


def test_loss_curve_does_not_depend_on_the_number_of_workers_without_batch_norm(curves: dict[int, list[Row]]) -> None:
    assert_same_losses(curves[3], curves[1])


def test_run_resumed_on_another_number_of_workers_follows_the_same_loss_curve_without_batch_norm(
    train: Train, curves: dict[int, list[Row]]
) -> None:
    calls = []

    def stop_in_the_second_epoch() -> bool:
        calls.append(1)
        return len(calls) > 13

    # Frequent checkpoints: the ranks decide after every step.
    frequent = {"checkpoint_every_seconds": 0.01}
    outcome, rows = train(3, stop_requested=stop_in_the_second_epoch, run_name="resized", **SETTINGS, **frequent)
    assert (outcome.kind, len(rows)) == ("stopped", 1)
    assert 10 < outcome.step < 20
    outcome, rows = train(1, run_name="resized", **SETTINGS)
    assert outcome.kind == "finished"
    assert_same_losses(rows, curves[3])


def test_machine_without_the_drivers_storage_is_rejected(train: Train, tmp_path: Path) -> None:
    # The folder exists, as it may on another machine; the driver's lock file does not.
    outcome, rows = train(2, lock_file=str(tmp_path / ".running-run"), **SETTINGS)
    assert (outcome.kind, rows) == ("refused", [])
    assert outcome.message.startswith(f"--storage-path {tmp_path} of the driver is not on {get_node_ip_address()}: ")


def make_loop_with_lease() -> Callable[..., Outcome]:
    """The training loop of a command that holds a lease."""

    def loop(settings: dict[str, Job]) -> Outcome:
        from dataclasses import replace

        from vgg_ddp.run.lease import Lease
        from vgg_ddp.worker.train import train_loop

        job = settings["job"]
        lease = Lease(VersionedFile((job.run / "lease").path), "taken")
        return train_loop({"job": replace(job, run=replace(job.run, lease=lease))})

    return loop


def test_run_that_another_command_has_taken_over_does_not_start_on_any_rank(train: Train, runs: Folder) -> None:
    VersionedFile((runs / "taken" / "lease").path).replace(b'{"owner": "another", "writer": ""}', None)
    outcome, rows = train(2, loop=make_loop_with_lease(), run_name="taken")
    assert (outcome.kind, rows) == ("unsaved", [])
    assert outcome.message.startswith("another command has taken over run taken, ")
    assert not (runs / "taken").exists("config.json")


@pytest.mark.usefixtures("ray_cluster")
def test_missing_gpus_of_an_elastic_run_are_those_of_min_workers() -> None:
    config = TrainConfig(device="gpu", num_workers=64, min_workers=16, batch_size=128)
    with pytest.raises(UsageError, match=r"^--device gpu --min-workers 16: Ray sees \d+ GPU"):
        place_workers(config)


def test_every_test_image_is_counted_once_by_three_workers(curves: dict[int, list[Row]]) -> None:
    # 60 images: if one were counted twice or not at all, the accuracy would not be a multiple of 1/60.
    for row in curves[3]:
        assert row["test_accuracy"] * 60 == pytest.approx(round(row["test_accuracy"] * 60), abs=1e-4)


def test_bf16_gradients_give_nearly_the_same_losses(train: Train, curves: dict[int, list[Row]]) -> None:
    outcome, rows = train(3, gradients="bf16", **SETTINGS)
    assert outcome.kind == "finished"
    losses, exact = [row["loss"] for row in rows], [row["loss"] for row in curves[3]]
    assert losses == pytest.approx(exact, rel=0.01)
    # Without the flag, another run with three workers would give exactly these numbers.
    assert losses != exact


@pytest.mark.usefixtures("curves")
def test_no_unused_actors_run() -> None:
    # Other clusters may run on this machine.
    address = ray.get_runtime_context().gcs_address
    kinds = {actor.class_name for actor in list_actors(address, limit=1000)}
    assert {"RayTrainWorker", "TrainController"} <= kinds
    assert not kinds & {"PlacementGroupCleaner", "DatasetManager", "PreemptionWatcher", "TrainStateActor"}


def make_loop_without_space() -> Callable[..., Outcome]:
    """The training loop on a worker that cannot write files of more than 1 MiB, such as checkpoints."""

    def loop(settings: dict[str, Job]) -> Outcome:
        import resource

        from vgg_ddp.run import saver
        from vgg_ddp.worker.train import train_loop

        # The process ends with the run.
        saver.RETRY_DELAYS = ()
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        return train_loop(settings)

    return loop


def test_diverging_run_stops_all_ranks_and_names_the_step_and_a_failed_checkpoint(train: Train) -> None:
    outcome, rows = train(2, loop=make_loop_without_space(), epochs=3, lr=1e30, checkpoint_every_seconds=0.01)
    assert outcome.kind == "diverged"
    assert "epoch 1, step 2 of 10" in outcome.message
    assert re.search(r"--precision fp32\. Also, \S+ cannot be written: .*File too large", outcome.message)
    assert rows == []
