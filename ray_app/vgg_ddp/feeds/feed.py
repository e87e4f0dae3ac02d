"""A feed gives a rank its batches; the training loop is the same for all feeds. This is what they share."""

import warnings
from collections.abc import Iterator
from typing import Any, Literal, Protocol

import numpy.typing as npt
import torch
from torch import Tensor

from vgg_ddp.config import TrainConfig
from vgg_ddp.feeds.augment import EpochPlan, plan_epoch

Batches = Iterator[tuple[Tensor, Tensor]]
"""Images, uint8 (n, H, W, 3), and labels, int64 (n,), on the device."""
EvaluationSplit = Literal["validation", "test"]


class Feed(Protocol):
    """Gives one rank its part of every batch.

    Attributes:
        failure: describes the first image that could not be decoded; None so far.
        images_on: where the images are kept between batches, as chosen.json records it.
    """

    failure: str | None
    images_on: str

    def train_batches(self, epoch: int, first_step: int) -> Batches:
        """This rank's part of each global batch of an epoch, augmented, starting at a step of the epoch."""

    def evaluation_batches(self, split: EvaluationSplit) -> Batches:
        """This rank's part of the validation or test images; each image belongs to exactly one rank."""


def draw_plan(config: TrainConfig, num_images: int, epoch: int) -> EpochPlan:
    """Draw the order and augmentation of an epoch: the same on all ranks and for all feeds."""
    recipe = config.chosen_recipe()
    return plan_epoch(num_images, config.seed, epoch, recipe.augment_shift, recipe.cutout)


def move_plan(plan: EpochPlan, device: torch.device, previous: EpochPlan | None) -> EpochPlan:
    """Copy a plan to the device, into the memory of the previous epoch's plan if there is one."""
    if previous is None:
        return plan.to(device)
    previous.copy_from(plan)
    return previous


def mean_pixel(mean: tuple[float, ...], device: torch.device) -> Tensor:
    """The mean color, uint8 (3,), which fills the squares of cutout."""
    return torch.tensor(mean, device=device).round().to(torch.uint8)


def as_tensor(values: npt.NDArray[Any], device: torch.device) -> Tensor:
    """Copy an array to the device. On the CPU the tensor shares the array's memory, which may be read-only."""
    with warnings.catch_warnings():
        # torch warns about read-only arrays; nothing writes to these.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writ")
        return torch.from_numpy(values).to(device)


def rank_range(count: int, rank: int, world_size: int) -> range:
    """The part of `count` items that belongs to a rank: each item to exactly one rank; sizes differ by at most one."""
    return range(count * rank // world_size, count * (rank + 1) // world_size)


def evaluation_batch(device: torch.device, image_size: int) -> int:
    """Images per batch of an evaluation: on GPUs, 2,500 of up to 32 x 32 pixels, fewer of larger images."""
    # Larger batches of larger images would need more memory than a step of training.
    return max(500, 2500 * 32**2 // max(32, image_size) ** 2) if device.type == "cuda" else 500


def slices(part: range, size: int) -> Iterator[slice]:
    """Consecutive slices of a range, of this size except for the last one."""
    for start in range(part.start, part.stop, size):
        yield slice(start, min(start + size, part.stop))
