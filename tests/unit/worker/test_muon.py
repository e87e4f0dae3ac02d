"""Muon, compared with torch's Muon, with exact singular values, and between one and several ranks."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from support.ranks import run_ranks
from vgg_ddp.worker.muon import COEFFICIENTS, ITERATIONS, BatchedMuon, Muon, assign, orthogonalize


def make_filters(*shapes: tuple[int, int], seed: int = 0) -> list[Tensor]:
    """Filters (O, I, 3, 3), channels last, with gradients."""
    generator = torch.Generator().manual_seed(seed)
    filters = []
    for outs, ins in shapes:
        weight = torch.randn(outs, ins, 3, 3, generator=generator).to(memory_format=torch.channels_last)
        weight.requires_grad_().grad = torch.randn(outs, ins, 3, 3, generator=generator)
        filters.append(weight)
    return filters


@pytest.mark.parametrize("shape", [(16, 27), (64, 576), (30, 30), (64, 27)])
def test_polynomial_is_applied_to_each_singular_value(shape: tuple[int, int]) -> None:
    matrix = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    left, values, right = torch.linalg.svd(matrix / matrix.norm(), full_matrices=False)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        values = a * values + b * values**3 + c * values**5
    torch.testing.assert_close(orthogonalize(matrix, torch.float64), left @ values.diag() @ right)
    close = orthogonalize(matrix.float(), torch.float32).double()
    torch.testing.assert_close(close, left @ values.diag() @ right, rtol=1e-3, atol=1e-4)


def test_update_direction_equals_that_of_torchs_muon() -> None:
    (ours,) = make_filters((32, 8))
    theirs = ours.detach().permute(0, 2, 3, 1).flatten(1).clone().requires_grad_()
    assert ours.grad is not None
    reference = torch.optim.Muon([theirs], lr=1.0, momentum=0.6, weight_decay=0.0, ns_steps=ITERATIONS)
    optimizer = Muon([ours], lr=1.0, momentum=0.6, dtype=torch.float32)
    for _ in range(3):
        before_ours, before_theirs = ours.detach().clone(), theirs.detach().clone()
        theirs.grad = ours.grad.permute(0, 2, 3, 1).flatten(1)
        optimizer.step()
        reference.step()
        step = ours.detach() - before_ours * (32**0.5 / before_ours.norm())
        step = step.permute(0, 2, 3, 1).flatten(1)
        expected = theirs.detach() - before_theirs
        # torch's Muon computes in bf16, and scales updates by the shape.
        torch.testing.assert_close(step / step.norm(), expected / expected.norm(), rtol=0, atol=0.003)


def test_batched_updates_equal_single_ones() -> None:
    shapes = ((16, 3), (32, 16), (32, 16), (8, 16), (32, 16))
    filters, batched = make_filters(*shapes), make_filters(*shapes)
    optimizer = Muon(filters, lr=0.125, momentum=0.6, dtype=torch.float32)
    batched_optimizer = BatchedMuon(batched, lr=0.125, momentum=0.6, dtype=torch.float32)
    for factor in (1.0, 0.5, 0.25):
        optimizer.param_groups[0]["lr"] = 0.125 * factor
        # As in training on a GPU.
        batched_optimizer.param_groups[0]["lr"] = torch.tensor(0.125 * factor)
        optimizer.step()
        batched_optimizer.step()
        for weight, other in zip(filters, batched, strict=True):
            torch.testing.assert_close(weight, other, rtol=1e-4, atol=1e-5)
    assert optimizer.state_dict().keys() == batched_optimizer.state_dict().keys()


def test_learning_rate_on_the_device_takes_the_same_step() -> None:
    of_float, of_tensor = make_filters((16, 8)), make_filters((16, 8))
    for filters, lr in ((of_float, 0.125), (of_tensor, torch.tensor(0.125))):
        optimizer = Muon(filters, lr=0.125, momentum=0.6, dtype=torch.bfloat16)
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
    torch.testing.assert_close(of_float[0], of_tensor[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(16, 8, 1, 1), (8, 3, 7, 7), (8, 4, 1, 3)])
def test_filters_of_any_size_take_orthogonal_steps(shape: tuple[int, int, int, int]) -> None:
    torch.manual_seed(0)
    weight = torch.randn(shape).to(memory_format=torch.channels_last)
    before = weight * (shape[0] ** 0.5 / weight.norm())
    weight.requires_grad_().grad = gradient = torch.randn(shape)
    Muon([weight], lr=1.0, momentum=0.0, dtype=torch.float32).step()
    update = (before - weight.detach()).flatten(1)
    torch.testing.assert_close(update, orthogonalize(gradient.flatten(1), torch.float32), rtol=1e-4, atol=1e-5)


def test_norm_of_a_filter_is_restored_before_each_step() -> None:
    filters = make_filters((16, 4))
    optimizer = Muon(filters, lr=1e-9, momentum=0.6, dtype=torch.float32)
    optimizer.step()
    assert filters[0].norm().item() == pytest.approx(16**0.5, rel=1e-5)


def test_restored_state_continues_like_the_saved_one() -> None:
    ours, copies = make_filters((16, 4)), make_filters((16, 4))
    optimizer, other = (Muon(filters, lr=0.1, momentum=0.6, dtype=torch.float32) for filters in (ours, copies))
    optimizer.step()
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    copies[0].data.copy_(ours[0])
    optimizer.step()
    other.step()
    assert torch.equal(ours[0], copies[0])


def test_each_task_goes_to_the_rank_with_the_least_load() -> None:
    assert assign([5, 3, 8, 1], 2) == [1, 1, 0, 0]
    assert assign([1, 1, 1], 1) == [0, 0, 0]
    assert sorted(assign([1, 1, 1, 1], 4)) == [0, 1, 2, 3]


SHAPES = ((32, 3), (16, 4), (16, 8), (8, 8))


def step_on_a_rank(rank: int, folder: Path) -> None:
    """Take two steps with the work shared among all ranks, and store the filters."""
    filters = make_filters(*SHAPES)
    optimizer = Muon(filters, lr=0.1, momentum=0.6, dtype=torch.float32, share=True)
    optimizer.step()
    optimizer.step()
    torch.save([weight.detach() for weight in filters], folder / f"{rank}.pt")


def test_sharing_the_work_does_not_change_the_weights(tmp_path: Path) -> None:
    filters = make_filters(*SHAPES)
    optimizer = Muon(filters, lr=0.1, momentum=0.6, dtype=torch.float32)
    optimizer.step()
    optimizer.step()
    run_ranks(2, step_on_a_rank, tmp_path)
    for rank in range(2):
        for ours, alone in zip(torch.load(tmp_path / f"{rank}.pt"), filters, strict=True):
            torch.testing.assert_close(ours, alone.detach(), rtol=1e-6, atol=1e-6)
