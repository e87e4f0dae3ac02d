"""Build a rank's model, apply the recipe's settings and the initial weights, and test it with one batch."""

import copy

import torch
from torch import Tensor, nn

from vgg_ddp.config import TrainConfig
from vgg_ddp.feeds.feed import as_tensor
from vgg_ddp.job import Inputs, RefusedError
from vgg_ddp.model.build import build_model
from vgg_ddp.model.fast_vgg import FastVGG11
from vgg_ddp.model.stored import initialize_from
from vgg_ddp.recipes import Recipe
from vgg_ddp.worker.optimizers import muon_filters


def prepare_model(config: TrainConfig, recipe: Recipe, inputs: Inputs, world_size: int) -> nn.Module:
    """The model to train, on the CPU, the same on all ranks.

    Raises:
        RefusedError: if the model cannot be trained with this recipe or on these images.
    """
    class_names, pretrained = inputs.dataset.class_names, inputs.pretrained
    model = build_model(config.recipe, len(class_names), config.seed)
    if recipe.identity_filters and isinstance(model, FastVGG11):
        model.start_as_identity()
    if recipe.norm_momentum is not None:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.momentum = recipe.norm_momentum
    if pretrained:
        tensors = {name: as_tensor(values, torch.device("cpu")) for name, values in pretrained.tensors.items()}
        initialize_from(model, tensors, with_head=pretrained.class_names == class_names)
    if recipe.muon and not muon_filters(model):
        raise RefusedError(
            f"--recipe {config.recipe} trains convolutions with Muon, which requires some without bias, followed by "
            f"normalization; {type(model).__name__} has none: use --recipe classic."
        )
    # The same on all ranks, even if the batch does not split evenly.
    _try(model, len(class_names), min(2, config.global_batch // world_size), config.smallest_image_size)
    return model


def _try(model: nn.Module, num_classes: int, count: int, size: int) -> None:
    """Check that a copy of the model, in training mode, maps a batch of images of this size to logits."""
    what = f"build_model's {type(model).__name__}"
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            logits = copy.deepcopy(model)(torch.zeros(count, 3, size, size).to(memory_format=torch.channels_last))
    # Layers raise these for inputs of the wrong shape; torchvision's models also raise AssertionError.
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = " ".join(str(error).split())[:300]
        raise RefusedError(
            f"{what} cannot train on {count} image(s) of {size}x{size} pixels per worker: {reason}"
        ) from error
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if shape != (count, num_classes):
        raise RefusedError(f"{what} returns {shape} for {count} image(s): expected logits {(count, num_classes)}.")
