"""The models that `build_model` returns for both recipes."""

import pytest
import torch
from torch import nn

from vgg_ddp.model.build import build_model

RECIPES = ["classic", "fast"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_weights_depend_only_on_the_seed(recipe: str) -> None:
    torch.manual_seed(1)
    first = build_model(recipe, 4, seed=7).state_dict()
    torch.manual_seed(2)
    expected = torch.rand(3)
    torch.manual_seed(2)
    second, other = (build_model(recipe, 4, seed).state_dict() for seed in (7, 8))
    # The global random state is unchanged.
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(first[name], second[name]) for name in first)
    weights = [name for name, tensor in first.items() if name.endswith("weight") and tensor.ndim > 1]
    assert len(weights) == 9
    assert not any(torch.equal(first[name], other[name]) for name in weights)


@pytest.mark.parametrize("recipe", RECIPES)
def test_filters_are_in_channels_last_memory(recipe: str) -> None:
    filters = [layer.weight for layer in build_model(recipe, 4, 0).modules() if isinstance(layer, nn.Conv2d)]
    assert len(filters) == 8
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in filters)
