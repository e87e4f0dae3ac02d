"""Recipes: settings that were tuned together. Flags override individual settings."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Recipe:
    """The hyperparameters of training.

    Attributes:
        lr: peak learning rate; with `muon`, that of the filters.
        momentum: Nesterov momentum; with `muon`, that of the filters.
        batch_size: the global batch that the other values were tuned for.
        warmup_fraction: fraction of the run in which the learning rate rises to its peak.
        lr_decay: whether the learning rate then decays to 0; otherwise, it stays at its peak.
        augment_shift: maximum random shift of training images, in pixels.
        cutout: side of the square that is cut out of each training image, in pixels.
        muon: whether Muon trains the filters of convolutions and SGD the rest; otherwise, SGD trains everything.
        identity_filters: whether the filters of `FastVGG11` are initialized as identities.
        norm_momentum: momentum of the running statistics of batch normalization. None: the model's default.
        norm_bias_lr: in a model that scales its logits, the learning rate of biases for losses summed over a batch.
        classifier_lr: the same for the classifier.
    """

    lr: float
    momentum: float
    batch_size: int
    weight_decay: float
    label_smoothing: float
    warmup_fraction: float
    augment_shift: int
    cutout: int
    muon: bool
    lr_decay: bool = True
    identity_filters: bool = False
    norm_momentum: float | None = None
    norm_bias_lr: float = 0.053
    classifier_lr: float = 0.67


CLASSIC = Recipe(
    lr=0.05,
    momentum=0.9,
    batch_size=128,
    weight_decay=5e-4,
    label_smoothing=0.1,
    warmup_fraction=0.2,
    augment_shift=2,
    cutout=0,
    muon=False,
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
    muon=True,
    identity_filters=True,
    # A short run has no time for long averages.
    norm_momentum=0.4,
)
# Longer runs see each image more often and need more variety: (minimum epochs, shift, cutout) for 32-pixel images.
FAST_VARIETY = ((6, 4, 6), (12, 4, 8), (24, 4, 12))


def choose_recipe(name: str, epochs: int, image_size: int) -> Recipe:
    """The classic or fast recipe, adapted to the number of epochs and the image size."""
    recipe = CLASSIC
    if name == "fast":
        recipe = FAST
        for min_epochs, shift, cutout in FAST_VARIETY:
            if epochs >= min_epochs:
                recipe = replace(FAST, augment_shift=shift, cutout=cutout)
    scale = image_size / 32
    return replace(recipe, augment_shift=int(recipe.augment_shift * scale), cutout=int(recipe.cutout * scale))
