"""What Ray's workers compute together."""

from collections.abc import Callable

import pytest

from vgg_ddp.report import Row
from vgg_ddp.worker import Outcome

Train = Callable[..., tuple[Outcome, list[Row]]]


def test_loss_curve_does_not_depend_on_the_number_of_workers_without_batch_norm(train: Train) -> None:
    curves = {}
    for num_workers in (1, 2, 3):
        outcome, rows = train(num_workers, batch_norm=False, epochs=2, lr=0.01)
        assert outcome.kind == "finished"
        curves[num_workers] = [(row["loss"], row["test_loss"]) for row in rows]
    assert len(curves[1]) == 2
    for num_workers in (2, 3):
        for ours, reference in zip(curves[num_workers], curves[1], strict=True):
            assert ours == pytest.approx(reference, rel=1e-5)


def test_every_test_image_is_counted_once_by_three_workers(train: Train) -> None:
    # 60 images: an accuracy that counted one twice or not at all would be no multiple of 1/60.
    _, (row,) = train(3, epochs=1, lr=0.01)
    assert row["test_accuracy"] * 60 == pytest.approx(round(row["test_accuracy"] * 60), abs=1e-4)


def test_diverging_run_stops_all_ranks_and_names_the_step(train: Train) -> None:
    outcome, rows = train(2, epochs=3, lr=1e30)
    assert outcome.kind == "diverged"
    assert "epoch 1, step 2 of 10" in outcome.message
    assert rows == []
