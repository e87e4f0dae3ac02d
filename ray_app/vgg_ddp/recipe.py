"""Recipes: settings that were tuned together. What the command gives replaces single ones of them."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Recipe:
    """How a model learns.

    Attributes:
        lr: peak learning rate; of the filters where they have an optimizer of their own.
        momentum: of the same.
        batch_size: the global batch that the rest was chosen for.
        warmup_fraction: part of the run in which the learning rate rises to its peak.
        augment_shift: how far training images are moved at random, in pixels.
        cutout: side in pixels of the square that is cut out of each training image.
        alternating_flip: whether an image that one epoch mirrors is not mirrored in the next, instead of at random.
    """

    lr: float
    momentum: float
    batch_size: int
    weight_decay: float
    label_smoothing: float
    warmup_fraction: float
    augment_shift: int
    cutout: int
    alternating_flip: bool


CLASSIC = Recipe(
    lr=0.05,
    momentum=0.9,
    batch_size=128,
    weight_decay=5e-4,
    label_smoothing=0.1,
    warmup_fraction=0.2,
    augment_shift=2,
    cutout=0,
    alternating_flip=False,
)
FAST = Recipe(
    lr=0.1,
    momentum=0.6,
    batch_size=512,
    weight_decay=0.0,
    label_smoothing=0.2,
    warmup_fraction=0.0,
    augment_shift=2,
    cutout=0,
    alternating_flip=True,
)
# Longer runs see every image more often and need more variety: from so many epochs on, shift and cutout of 32 pixels.
FAST_VARIETY = ((6, 4, 6), (12, 4, 8), (24, 4, 12))


def choose_recipe(name: str, epochs: int, image_size: int) -> Recipe:
    """The recipe of this name, classic or fast, for a run of so many epochs on images of this size."""
    recipe = CLASSIC
    if name == "fast":
        recipe = FAST
        for from_epochs, shift, cutout in FAST_VARIETY:
            if epochs >= from_epochs:
                recipe = replace(FAST, augment_shift=shift, cutout=cutout)
    scale = image_size / 32
    return replace(recipe, augment_shift=int(recipe.augment_shift * scale), cutout=int(recipe.cutout * scale))
