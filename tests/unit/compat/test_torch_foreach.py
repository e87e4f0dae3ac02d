"""Operations on lists of tensors, with and without torch's private functions."""

import pytest
import torch
from torch import Tensor

from vgg_ddp.compat import torch_foreach as foreach

NAMES = ("_foreach_mul_", "_foreach_add_", "_foreach_add", "_foreach_norm")


def results() -> list[Tensor]:
    tensors, others = [torch.arange(3.0), torch.ones(2, 2)], [torch.full((3,), 0.5), torch.full((2, 2), 4.0)]
    foreach.mul_(tensors, 0.5)
    foreach.add_(tensors, others)
    return [*tensors, *foreach.add(tensors, others, 0.25), *foreach.norm(tensors)]


def test_results_are_the_same_without_torchs_functions(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with_torch = results()
    assert not caplog.records
    for name in NAMES:
        monkeypatch.delattr(torch, name)
    without = results()
    torch.testing.assert_close(without, with_torch, rtol=0, atol=1e-6)
    torch.testing.assert_close(without[:2], [torch.tensor([0.5, 1.0, 1.5]), torch.full((2, 2), 4.5)])
    assert [record.args[0] for record in caplog.records if record.args] == [f"torch.{name}" for name in NAMES]
