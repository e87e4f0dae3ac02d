"""Parameter groups, the optimizer and the learning-rate schedule."""

import torch
from torch import nn

WARMUP_FRACTION = 0.2


def lr_at(step: int, total_steps: int, peak_lr: float) -> float:
    """Learning rate of a step, 0 <= step < total_steps: a linear rise to the peak, then a linear fall towards 0."""
    warmup_steps = max(1.0, WARMUP_FRACTION * total_steps)
    rise = (step + 1) / warmup_steps
    fall = (total_steps - step) / max(1.0, total_steps - warmup_steps)
    return peak_lr * min(1.0, rise, fall)


def build_optimizer(model: nn.Module, lr: float, momentum: float, weight_decay: float) -> torch.optim.SGD:
    """SGD with Nesterov momentum; weight decay on matrices and filters only.

    Decaying biases and batch normalisation costs accuracy: "Bag of Tricks for Image Classification" (He et al., 2018).
    """
    decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    plain = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=momentum > 0, fused=True)
