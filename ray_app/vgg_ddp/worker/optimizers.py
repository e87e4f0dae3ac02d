"""Parameter groups, the optimizers and the learning-rate schedule."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vgg_ddp.compat.torch_dynamo import SGD
from vgg_ddp.recipes import Recipe
from vgg_ddp.worker.muon import BatchedMuon, Muon

# For the parameters that SGD trains next to Muon. The fast recipe has no warm-up: higher rates hurt the first epoch.
REST_LR, REST_MOMENTUM = 0.01, 0.9
# The same for a model that scales down its logits, such as FastVGG11; the recipe has the learning rates.
SCALED_MOMENTUM = 0.85


def lr_factor(recipe: Recipe, step: int, total_steps: int) -> float:
    """Fraction of the peak learning rate at a step, 0 <= step < total_steps: linear warm-up, then linear decay to 0.

    Without the recipe's `lr_decay`, it stays at the peak.
    """
    warmup_steps = max(1.0, recipe.warmup_fraction * total_steps)
    rise = (step + 1) / warmup_steps
    if not recipe.lr_decay:
        return min(1.0, rise)
    fall = (total_steps - step) / max(1.0, total_steps - warmup_steps)
    return min(1.0, rise, fall)


class Schedule:
    """The learning rates of all parameter groups at each step of a run.

    On a GPU, they are read from a table in its memory: a CUDA graph cannot take them from the host.
    """

    def __init__(self, recipe: Recipe, peak_lrs: Sequence[float], total_steps: int, device: torch.device) -> None:
        self._recipe, self._peak_lrs, self._total_steps = recipe, peak_lrs, total_steps
        self._table: Tensor | None = None
        if device.type != "cpu":
            self._table = torch.tensor([self._at(step) for step in range(total_steps)], device=device)

    def _at(self, step: int) -> list[float]:
        factor = lr_factor(self._recipe, step, self._total_steps)
        return [peak_lr * factor for peak_lr in self._peak_lrs]

    def lrs(self, step: int | Tensor) -> Sequence[float | Tensor]:
        """The learning rates at a step; in a CUDA graph, the step is a number on the device, int64 ().

        On a GPU, tensors of shape (), without a sync.
        """
        if self._table is None:
            assert isinstance(step, int)
            return self._at(step)
        row = self._table[step] if isinstance(step, int) else self._table.index_select(0, step.view(1)).view(-1)
        return row.unbind()


class Optimizers:
    """All optimizers of a model behind one interface: learning rates, step and state."""

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self.optimizers = optimizers
        self.peak_lrs: list[float] = [group["lr"] for group in self._groups()]

    def _groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def step(self, lrs: Sequence[float | Tensor]) -> None:
        """Step at these learning rates, one per group, then clear the gradients. May be a collective."""
        for group, lr in zip(self._groups(), lrs, strict=True):
            group["lr"] = lr
        for optimizer in self.optimizers:
            optimizer.step()
        self.zero_grad()

    def zero_grad(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def state(self) -> list[dict[str, Any]]:
        states = [optimizer.state_dict() for optimizer in self.optimizers]
        # The learning rates of the last step may be part of the table on the GPU, and are not needed.
        for group, peak_lr in zip(
            (group for state in states for group in state["param_groups"]), self.peak_lrs, strict=True
        ):
            group["lr"] = peak_lr
        return states

    def load_state(self, states: Sequence[dict[str, object]]) -> None:
        for optimizer, state in zip(self.optimizers, states, strict=True):
            optimizer.load_state_dict(state)


def muon_filters(model: nn.Module) -> list[Tensor]:
    """The filters that Muon can train, (O, I, H, W): of dense convolutions without bias.

    Muon fixes the norm of each filter, which is harmless only if normalization follows. A missing bias indicates that.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    return [layer.weight for layer in layers if layer.bias is None and layer.groups == 1 and layer.weight.requires_grad]


def build_optimizers(
    model: nn.Module, recipe: Recipe, batch_size: int, dtype: torch.dtype = torch.float32, share: bool = False
) -> Optimizers:
    """The optimizers of a model for losses that are means over global batches of this size.

    SGD trains everything, unless the recipe sets `muon`. Then Muon trains the filters, with matrix products of `dtype`,
    and SGD the rest. With `share`, the ranks divide Muon's work; otherwise, a GPU updates filters of the same shape
    together. A model that scales down its logits gets the learning rates that were tuned for that.
    """
    is_scaled = getattr(model, "logit_scale", 1.0) != 1.0
    if not recipe.muon and not is_scaled:
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return Optimizers([_sgd(_groups(parameters), recipe.lr, recipe.momentum, recipe.weight_decay)])
    filters = muon_filters(model)
    taken = {id(weight) for weight in filters}
    rest = _groups([weight for weight in model.parameters() if weight.requires_grad and id(weight) not in taken])
    rest_momentum = REST_MOMENTUM
    if is_scaled:
        matrices, vectors = rest
        matrices["lr"], vectors["lr"] = recipe.classifier_lr * batch_size, recipe.norm_bias_lr * batch_size
        rest, rest_momentum = [vectors, matrices], SCALED_MOMENTUM
    of_filters: torch.optim.Optimizer
    if recipe.muon and filters[0].is_cuda and not share:
        of_filters = BatchedMuon(filters, recipe.lr, recipe.momentum, dtype)
    elif recipe.muon:
        of_filters = Muon(filters, recipe.lr, recipe.momentum, dtype, share)
    else:
        of_filters = _sgd([{"params": filters}], recipe.lr, recipe.momentum, 0.0)
    return Optimizers([of_filters, _sgd(rest, REST_LR, rest_momentum, recipe.weight_decay)])


def _groups(parameters: list[nn.Parameter]) -> list[dict[str, object]]:
    """Two groups: matrices and filters with weight decay; biases and normalization without it, which is more accurate.

    See "Bag of Tricks for Image Classification with Convolutional Neural Networks" (He et al., 2018).
    """
    decayed = [parameter for parameter in parameters if parameter.ndim > 1]
    others = [parameter for parameter in parameters if parameter.ndim <= 1]
    return [{"params": decayed}, {"params": others, "weight_decay": 0.0}]


def _sgd(groups: list[dict[str, object]], lr: float, momentum: float, weight_decay: float) -> SGD:
    return SGD(groups, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=momentum > 0, fused=True)
