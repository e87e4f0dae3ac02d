"""Build the model to train. To train another architecture, edit `build_model`: see docs/extending.md."""

import torch
from torch import nn

from vgg_ddp.model.fast_vgg import FastVGG11
from vgg_ddp.model.vgg import VGG11


def build_model(recipe: str, num_classes: int, seed: int) -> nn.Module:
    """The model to train with a recipe (fast or classic); its initial weights depend only on the seed.

    It maps normalized images (N, 3, H, W), in channels_last memory format, to logits (N, num_classes).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = FastVGG11(num_classes) if recipe == "fast" else VGG11(num_classes)
    return model.to(memory_format=torch.channels_last)
