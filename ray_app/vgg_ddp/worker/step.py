"""One step of training, and evaluation: the arithmetic of the loop in `train.py`. Needs no Ray."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vgg_ddp.feeds.feed import EvaluationSplit
from vgg_ddp.model.preprocess import halve, normalize
from vgg_ddp.worker.ddp import average_buffers
from vgg_ddp.worker.metrics import Sums
from vgg_ddp.worker.state import TrainState, Worker


def train_step(worker: Worker, state: TrainState, images: Tensor, labels: Tensor, step: int | Tensor) -> None:
    """Optimizer step number `step`, on this rank's part of a global batch. Nothing here waits for the GPU.

    In a CUDA graph, the step is a number on the device, int64 ().
    """
    loss_sum, logits = forward_backward(worker, state, worker.ddp_model, images, labels)
    update(worker, state, step, loss_sum, logits, labels)


def forward_backward(
    worker: Worker, state: TrainState, model: nn.Module, images: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute the gradients; return the summed loss and the logits."""
    loss_sum, logits = forward(worker, state, model, images, labels, worker.recipe.label_smoothing)
    # DDP averages gradients over the ranks; this factor makes the average the gradient of the global batch's mean loss.
    (loss_sum * (worker.world_size / worker.config.global_batch)).backward()
    worker.telemetry.mark("communication")
    return loss_sum, logits


def update(
    worker: Worker, state: TrainState, step: int | Tensor, loss_sum: Tensor, logits: Tensor, labels: Tensor
) -> None:
    """Take the optimizer step, and add the batch to the epoch's sums."""
    state.optimizers.step(worker.schedule.lrs(step))
    state.sums.add(loss_sum, logits, labels)
    worker.control.watch(step, loss_sum)
    worker.telemetry.mark("compute")


def forward(
    worker: Worker, state: TrainState, model: nn.Module, images: Tensor, labels: Tensor, smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy (scalar, float32) and logits (B, classes) of uint8 images (B, H, W, 3)."""
    inputs = normalize(images, worker.mean, worker.std, worker.dtype)
    if state.epoch < worker.config.half_size_epochs:
        inputs = halve(inputs)
    worker.telemetry.mark("data")
    with torch.autocast(worker.device.type, torch.bfloat16, enabled=worker.dtype == torch.bfloat16):
        logits: Tensor = model(inputs)
    return F.cross_entropy(logits.float(), labels, reduction="sum", label_smoothing=smoothing), logits


@torch.no_grad()
def evaluate(worker: Worker, state: TrainState, split: EvaluationSplit) -> list[float]:
    """Sums of loss, correct predictions, and images of a split; each image counts on one rank. A collective."""
    average_buffers(state.model)
    sums = Sums(worker.device)
    state.model.eval()
    for images, labels in worker.feed.evaluation_batches(split):
        sums.add(*forward(worker, state, state.model, images, labels), labels)
        worker.monitor.beat()
    state.model.train()
    worker.monitor.arrive()
    return sums.total()
