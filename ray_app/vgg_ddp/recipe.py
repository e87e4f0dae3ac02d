"""Recipes: settings that were tuned together. What the command gives replaces single ones of them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """How a model learns.

    Attributes:
        lr: peak learning rate; of the filters where they have an optimizer of their own.
        momentum: of the same.
        warmup_fraction: part of the run in which the learning rate rises to its peak.
        alternating_flip: whether an image that one epoch mirrors is not mirrored in the next, instead of at random.
    """

    lr: float
    momentum: float
    weight_decay: float
    label_smoothing: float
    warmup_fraction: float
    alternating_flip: bool


RECIPES = {
    "classic": Recipe(
        lr=0.05, momentum=0.9, weight_decay=5e-4, label_smoothing=0.1, warmup_fraction=0.2, alternating_flip=False
    ),
    "fast": Recipe(
        lr=0.1, momentum=0.6, weight_decay=0.0, label_smoothing=0.2, warmup_fraction=0.0, alternating_flip=True
    ),
}
