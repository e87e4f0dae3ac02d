"""How recipes depend on the number of epochs and the image size, and how flags override them."""

import pytest

from vgg_ddp.config import RECIPE_FIELDS, TrainConfig
from vgg_ddp.recipes import CLASSIC, choose_recipe


@pytest.mark.parametrize("epochs", [1, 2, 15, 200])
def test_classic_does_not_depend_on_the_number_of_epochs(epochs: int) -> None:
    assert choose_recipe("classic", epochs, image_size=32) == CLASSIC


def test_longer_fast_runs_use_stronger_augmentation() -> None:
    lengths = (1, 2, 4, 8, 16, 32)
    variety = [(recipe.augment_shift, recipe.cutout) for recipe in (choose_recipe("fast", n, 32) for n in lengths)]
    assert variety == sorted(variety)
    assert variety[0] < variety[-1]


@pytest.mark.parametrize("name", ["classic", "fast"])
def test_shift_and_cutout_scale_with_the_image_size(name: str) -> None:
    small, large = choose_recipe(name, 16, 32), choose_recipe(name, 16, 96)
    assert (large.augment_shift, large.cutout) == (3 * small.augment_shift, 3 * small.cutout)
    assert (large.lr, large.label_smoothing) == (small.lr, small.label_smoothing)


def test_flags_override_recipe_values_even_with_zero() -> None:
    config = TrainConfig(recipe="fast", epochs=16, augment_shift=0, cutout=0, label_smoothing=0.0, lr=0.25)
    recipe = config.chosen_recipe()
    assert (recipe.augment_shift, recipe.cutout, recipe.label_smoothing, recipe.lr) == (0, 0, 0.0, 0.25)
    assert recipe.momentum == choose_recipe("fast", 16, 32).momentum


def test_run_trained_further_keeps_its_settings() -> None:
    # Like a resumed run: the same settings except for the number of epochs.
    saved = TrainConfig(recipe="fast", epochs=2).with_recipe().to_dict()
    longer = TrainConfig.from_dict(saved | {"epochs": 32}).chosen_recipe()
    assert longer == TrainConfig(recipe="fast", epochs=2).chosen_recipe()
    assert all(saved[name] is not None for name in RECIPE_FIELDS)
