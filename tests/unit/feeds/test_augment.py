"""The order, slices, and augmentation of batches, compared with torch and manual counts."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.functional import normalize as torchvision_normalize

from vgg_ddp.feeds.augment import EpochPlan, augment, plan_epoch
from vgg_ddp.feeds.feed import rank_range
from vgg_ddp.model.preprocess import halve, normalize

FILL = torch.tensor([250, 1, 2], dtype=torch.uint8)


def same(first: EpochPlan, second: EpochPlan) -> tuple[bool, bool, bool]:
    return (
        torch.equal(first.order, second.order),
        torch.equal(first.flip, second.flip),
        torch.equal(first.shift, second.shift),
    )


def test_plan_depends_only_on_seed_and_epoch() -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    plan = plan_epoch(200, seed=3, epoch=5, max_shift=2)
    torch.manual_seed(2)
    np.random.seed(2)
    plan_epoch(200, seed=3, epoch=4, max_shift=2)
    assert same(plan, plan_epoch(200, seed=3, epoch=5, max_shift=2)) == (True, True, True)


@pytest.mark.parametrize(("seed", "epoch"), [(3, 6), (4, 5), (5, 3)])
def test_different_seed_or_epoch_gives_a_different_plan(seed: int, epoch: int) -> None:
    plan = plan_epoch(200, seed=3, epoch=5, max_shift=2)
    assert same(plan, plan_epoch(200, seed, epoch, max_shift=2)) == (False, False, False)


def test_plan_does_not_change_the_global_random_state() -> None:
    before = torch.get_rng_state()
    plan_epoch(10, seed=0, epoch=0, max_shift=2)
    assert torch.equal(torch.get_rng_state(), before)


def test_order_is_a_permutation_of_all_images() -> None:
    order = plan_epoch(1001, seed=0, epoch=0, max_shift=2).order
    assert order.dtype == torch.int64
    assert sorted(order.tolist()) == list(range(1001))
    assert order.tolist() != list(range(1001))


def test_half_of_the_images_are_mirrored_and_all_shifts_occur() -> None:
    plan = plan_epoch(10_000, seed=0, epoch=0, max_shift=2)
    # Five standard deviations of a fair coin.
    assert abs(plan.flip.double().mean().item() - 0.5) < 0.025
    for axis in range(2):
        values, counts = plan.shift[:, axis].unique(return_counts=True)
        assert values.tolist() == [-2, -1, 0, 1, 2]
        assert (counts - 2000).abs().max() < 200


@pytest.mark.parametrize("count", [3, 7, 128, 500])
@pytest.mark.parametrize("world_size", range(1, 8))
def test_slices_of_all_ranks_cover_everything_once(count: int, world_size: int) -> None:
    slices = [rank_range(count, rank, world_size) for rank in range(world_size)]
    assert [index for part in slices for index in part] == list(range(count))
    sizes = [len(part) for part in slices]
    assert max(sizes) - min(sizes) <= 1


def by_hand(image: Tensor, top: int, left: int, flip: bool, pad: int) -> Tensor:
    """Pad one image (H, W, 3) by reflection, crop it, and mirror it."""
    height, width = image.shape[:2]
    padded = F.pad(image.permute(2, 0, 1)[None].double(), (pad, pad, pad, pad), mode="reflect")[0]
    cropped = padded[:, pad + top : pad + top + height, pad + left : pad + left + width]
    return (cropped.flip(2) if flip else cropped).permute(1, 2, 0).to(torch.uint8)


@pytest.mark.parametrize("max_shift", [1, 2, 7])
def test_augmentation_equals_reflection_padding_crop_and_flip(max_shift: int) -> None:
    images = torch.randint(0, 256, (40, 8, 9, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    plan = plan_epoch(len(images), seed=1, epoch=0, max_shift=max_shift)
    index = plan.order[5:37]
    expected = torch.stack(
        [by_hand(images[i], *plan.shift[i].tolist(), bool(plan.flip[i]), max_shift) for i in index.tolist()]
    )
    augmented = augment(images, index, plan, FILL)
    assert augmented.dtype == torch.uint8
    assert torch.equal(augmented, expected)


@pytest.mark.parametrize("side", [1, 3, 7])
def test_cutout_fills_one_square_inside_each_image(side: int) -> None:
    images = torch.zeros(3000, 8, 9, 3, dtype=torch.uint8)
    plan = plan_epoch(len(images), seed=1, epoch=0, max_shift=2, cutout=side)
    augmented = augment(images, plan.order, plan, FILL)
    cut = (augmented == FILL).all(dim=3)
    assert torch.equal(cut, (augmented != 0).any(dim=3))
    rows, columns = cut.any(dim=2), cut.any(dim=1)
    assert torch.equal(cut, rows[:, :, None] & columns[:, None, :])
    for spans, size in ((rows, 8), (columns, 9)):
        assert (spans.sum(dim=1) == side).all()
        starts = spans.int().argmax(dim=1)
        ends = size - spans.flip(1).int().argmax(dim=1)
        assert torch.equal(ends - starts, torch.full_like(starts, side))
        # All positions are equally frequent, within five standard deviations.
        positions = size - side + 1
        expected = len(images) / positions
        assert (starts.bincount(minlength=positions) - expected).abs().max() < 5 * expected**0.5


def test_cutout_changes_neither_order_nor_shift_nor_flip() -> None:
    plain, cut = plan_epoch(100, seed=2, epoch=1, max_shift=2), plan_epoch(100, seed=2, epoch=1, max_shift=2, cutout=5)
    assert same(plain, cut) == (True, True, True)


def test_plan_of_a_subset_gives_the_same_batch_as_the_whole_plan() -> None:
    images = torch.randint(0, 256, (20, 8, 8, 3), dtype=torch.uint8)
    plan = plan_epoch(len(images), seed=1, epoch=0, max_shift=2, cutout=3)
    numbers = torch.tensor([7, 3, 19])
    chosen = augment(images[numbers], torch.arange(3), plan.of(numbers), FILL)
    assert torch.equal(chosen, augment(images, numbers, plan, FILL))


def test_shift_0_leaves_images_unchanged() -> None:
    images = torch.randint(0, 256, (20, 8, 8, 3), dtype=torch.uint8)
    plan = plan_epoch(len(images), seed=1, epoch=0, max_shift=0)
    assert torch.equal(augment(images, plan.order, plan, FILL), images[plan.order])


def test_normalize_equals_torchvision() -> None:
    images = torch.randint(0, 256, (4, 8, 9, 3), dtype=torch.uint8)
    mean, std = torch.tensor([120.0, 110.0, 90.0]), torch.tensor([60.0, 50.0, 70.0])
    normalized = normalize(images, mean, std, torch.float32)
    expected = torchvision_normalize(images.permute(0, 3, 1, 2).float(), mean.tolist(), std.tolist())
    torch.testing.assert_close(normalized, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_normalize_returns_channels_last_of_the_dtype(dtype: torch.dtype) -> None:
    normalized = normalize(torch.zeros(2, 8, 9, 3, dtype=torch.uint8), torch.zeros(3), torch.ones(3), dtype)
    assert normalized.shape == (2, 3, 8, 9)
    assert normalized.dtype == dtype
    assert normalized.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_halve_averages_four_pixels_and_keeps_dtype_and_layout(dtype: torch.dtype) -> None:
    images = torch.arange(2 * 3 * 4 * 6).reshape(2, 3, 4, 6).to(dtype).contiguous(memory_format=torch.channels_last)
    halved = halve(images)
    assert halved.shape == (2, 3, 2, 3)
    assert halved.dtype == dtype
    assert halved.is_contiguous(memory_format=torch.channels_last)
    assert halved[0, 0, 0].tolist() == [3.5, 5.5, 7.5]


def test_normalize_rejects_float_images() -> None:
    with pytest.raises(TypeError, match="uint8"):
        normalize(torch.zeros(1, 8, 8, 3), torch.zeros(3), torch.ones(3), torch.float32)
