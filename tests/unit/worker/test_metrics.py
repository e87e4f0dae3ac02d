"""Sums over an epoch, compared with manual counts; one process."""

import pytest
import torch
import torch.nn.functional as F

from vgg_ddp.worker.metrics import Sums


def test_sums_equal_those_of_all_batches_together() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(23, 5, generator=generator)
    labels = torch.randint(0, 5, (23,), generator=generator)
    sums = Sums(torch.device("cpu"))
    for start in range(0, 23, 8):
        part = slice(start, start + 8)
        sums.add(F.cross_entropy(logits[part], labels[part], reduction="sum"), logits[part], labels[part])
    loss, correct, count = sums.total()
    assert loss == pytest.approx(F.cross_entropy(logits, labels).item() * 23)
    assert correct == sum(
        row.index(max(row)) == label for row, label in zip(logits.tolist(), labels.tolist(), strict=True)
    )
    assert count == 23


def test_sums_are_exact_beyond_float32_precision() -> None:
    sums = Sums(torch.device("cpu"))
    sums.restart_from([0.0, 2.0**25, 2.0**25], rank=0)
    sums.add(torch.tensor(0.5), torch.tensor([[0.0, 1.0]]), torch.tensor([1]))
    assert sums.total() == [0.5, 2.0**25 + 1, 2.0**25 + 1]


def test_total_does_not_change_the_sums() -> None:
    sums = Sums(torch.device("cpu"))
    sums.add(torch.tensor(2.5), torch.eye(2), torch.tensor([0, 0]))
    assert sums.total() == sums.total() == [2.5, 1.0, 2.0]


def test_sums_do_not_keep_the_autograd_graph() -> None:
    sums = Sums(torch.device("cpu"))
    logits = torch.zeros(2, 3, requires_grad=True)
    sums.add(logits.sum(), logits, torch.tensor([0, 1]))
    assert not sums.values.requires_grad


def test_only_rank_0_gets_the_restored_sums() -> None:
    ranks = [Sums(torch.device("cpu")) for _ in range(3)]
    for rank, sums in enumerate(ranks):
        sums.add(torch.tensor(9.0), torch.eye(2), torch.tensor([0, 1]))
        sums.restart_from([1.5, 2.0, 3.0], rank)
    assert [sums.total() for sums in ranks] == [[1.5, 2.0, 3.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
