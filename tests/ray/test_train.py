"""What Ray's workers compute together."""

from collections.abc import Callable
from pathlib import Path

import pytest
from ray.util import get_node_ip_address
from ray.util.state import list_actors

from vgg_ddp.job import Outcome
from vgg_ddp.report import Row

Train = Callable[..., tuple[Outcome, list[Row]]]
SETTINGS = {"batch_norm": False, "epochs": 2, "lr": 0.01}


@pytest.fixture(scope="module")
def curves(train: Train) -> dict[int, list[Row]]:
    """The metrics of one, two and three workers that nothing disturbed, without batch normalisation."""
    curves = {}
    for num_workers in (1, 2, 3):
        outcome, rows = train(num_workers, **SETTINGS)
        assert (outcome.kind, len(rows)) == ("finished", 2)
        curves[num_workers] = rows
    return curves


def assert_same_losses(ours: list[Row], reference: list[Row]) -> None:
    for row, expected in zip(ours, reference, strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert row["test_loss"] == pytest.approx(expected["test_loss"], rel=1e-5)


def test_loss_curve_does_not_depend_on_the_number_of_workers_without_batch_norm(curves: dict[int, list[Row]]) -> None:
    assert_same_losses(curves[2], curves[1])
    assert_same_losses(curves[3], curves[1])


def test_run_resumed_on_another_number_of_workers_follows_the_same_loss_curve_without_batch_norm(
    train: Train, curves: dict[int, list[Row]]
) -> None:
    looks = []

    def stop_in_the_second_epoch() -> bool:
        looks.append(1)
        return len(looks) > 13

    outcome, rows = train(3, stop_requested=stop_in_the_second_epoch, run_name="resized", **SETTINGS)
    assert (outcome.kind, len(rows)) == ("stopped", 1)
    assert 10 < outcome.step < 20
    outcome, rows = train(1, run_name="resized", **SETTINGS)
    assert outcome.kind == "finished"
    assert_same_losses(rows, curves[2])


def test_machine_that_does_not_see_the_drivers_disk_is_refused(train: Train, tmp_path: Path) -> None:
    # The folder is there, as it may be on another machine; the driver's file in it is not.
    outcome, rows = train(2, claim=str(tmp_path / ".running-run"), **SETTINGS)
    assert (outcome.kind, rows) == ("refused", [])
    assert outcome.message.startswith(f"--storage-path {tmp_path} of the driver is not on {get_node_ip_address()}: ")


def test_every_test_image_is_counted_once_by_three_workers(curves: dict[int, list[Row]]) -> None:
    # 60 images: an accuracy that counted one twice or not at all would be no multiple of 1/60.
    for row in curves[3]:
        assert row["test_accuracy"] * 60 == pytest.approx(round(row["test_accuracy"] * 60), abs=1e-4)


def test_gradients_in_bf16_lead_to_nearly_the_same_losses(train: Train, curves: dict[int, list[Row]]) -> None:
    outcome, rows = train(2, gradients="bf16", **SETTINGS)
    assert outcome.kind == "finished"
    losses, exact = [row["loss"] for row in rows], [row["loss"] for row in curves[2]]
    assert losses == pytest.approx(exact, rel=0.01)
    assert losses != exact


@pytest.mark.usefixtures("curves")
def test_no_actor_runs_beside_the_workers_that_has_nothing_to_do() -> None:
    kinds = {actor.class_name for actor in list_actors(limit=1000)}
    assert {"RayTrainWorker", "TrainController"} <= kinds
    assert not kinds & {"PlacementGroupCleaner", "DatasetManager", "PreemptionWatcher", "TrainStateActor"}


def test_diverging_run_stops_all_ranks_and_names_the_step(train: Train) -> None:
    outcome, rows = train(2, epochs=3, lr=1e30)
    assert outcome.kind == "diverged"
    assert "epoch 1, step 2 of 10" in outcome.message
    assert rows == []
