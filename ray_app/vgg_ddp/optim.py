"""Parameter groups, the optimizers and the learning-rate schedule."""

from collections.abc import Sequence

import torch
from torch import nn

from vgg_ddp.fast_vgg import FastVGG11
from vgg_ddp.lazy_dynamo import SGD
from vgg_ddp.muon import Muon
from vgg_ddp.recipe import Recipe

# Learning rates of what FastVGG11 has beside filters, for losses that are sums over a batch. Ours are means.
NORM_BIAS_LR = 0.053
CLASSIFIER_LR = 0.67
PLAIN_MOMENTUM = 0.85


def schedule(step: int, total_steps: int, warmup_fraction: float) -> float:
    """Part of the peak learning rate at a step, 0 <= step < total_steps: a linear rise, then a linear fall to 0."""
    warmup_steps = max(1.0, warmup_fraction * total_steps)
    rise = (step + 1) / warmup_steps
    fall = (total_steps - step) / max(1.0, total_steps - warmup_steps)
    return min(1.0, rise, fall)


class Optimizers:
    """The optimizers of a model as one: their common schedule, step and state."""

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self.optimizers = optimizers
        self._peak_lrs = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]

    def step(self, part_of_peak: float) -> None:
        """Take one step at this part of the peak learning rates, and forget the gradients. May be a collective."""
        for optimizer, peak_lrs in zip(self.optimizers, self._peak_lrs, strict=True):
            for group, peak_lr in zip(optimizer.param_groups, peak_lrs, strict=True):
                group["lr"] = peak_lr * part_of_peak
            optimizer.step()
        self.zero_grad()

    def zero_grad(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def state(self) -> list[dict[str, object]]:
        return [optimizer.state_dict() for optimizer in self.optimizers]

    def load_state(self, states: Sequence[dict[str, object]]) -> None:
        for optimizer, state in zip(self.optimizers, states, strict=True):
            optimizer.load_state_dict(state)


def build_optimizers(
    model: nn.Module, recipe: Recipe, batch_size: int, dtype: torch.dtype = torch.float32, share: bool = False
) -> Optimizers:
    """The optimizers of a model for losses that are means over global batches of this size.

    `FastVGG11` takes Muon for its filters, with products of `dtype` and its work shared among the ranks if asked for.
    """
    if isinstance(model, FastVGG11):
        stages = model.stages()
        filters = [stage.convolution.weight for stage in stages]
        biases = [stage.norm.bias for stage in stages]
        groups = [
            {"params": biases, "lr": NORM_BIAS_LR * batch_size, "weight_decay": 0.0},
            {"params": [model.classifier.weight], "lr": CLASSIFIER_LR * batch_size},
        ]
        return Optimizers(
            [
                Muon(filters, recipe.lr, recipe.momentum, dtype, share),
                _sgd(groups, recipe.lr, PLAIN_MOMENTUM, recipe.weight_decay),
            ]
        )
    # Decaying biases and batch normalisation costs accuracy: "Bag of Tricks for Image Classification", He et al., 2018.
    decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    plain = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
    return Optimizers([_sgd(groups, recipe.lr, recipe.momentum, recipe.weight_decay)])


def _sgd(groups: list[dict[str, object]], lr: float, momentum: float, weight_decay: float) -> SGD:
    return SGD(groups, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=momentum > 0, fused=True)
