"""One worker's copy of the model: DDP, the optimizers, and the state of both that a checkpoint holds."""

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import ray.train.torch
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook

from vgg_ddp.fast_vgg import FastVGG11
from vgg_ddp.lazy_dynamo import no_dynamo
from vgg_ddp.model import VGG11
from vgg_ddp.optim import Optimizers

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
# torch 2.13 renamed the argument, and warns of the old name.
SYNC_BUFFERS = next(
    name
    for name in ("forward_sync_buffers", "broadcast_buffers")
    if name in inspect.signature(nn.parallel.DistributedDataParallel).parameters
)


class Replica:
    """The model, wrapped by DDP where there are several workers, and its optimizers.

    Attributes:
        module: the bare model, for evaluation and for its state.
        ddp: what training calls; its backward pass averages gradients over the ranks.
    """

    def __init__(
        self,
        module: VGG11 | FastVGG11,
        device: torch.device,
        precision: str,
        compiled: bool,
        gradients: str,
        build: Callable[[nn.Module], Optimizers],
    ) -> None:
        self.module = module
        self.device = device
        self.dtype = DTYPES[precision]
        # Each rank keeps its own batch statistics, averaged at epoch ends: no broadcast on every step.
        ddp_options = {SYNC_BUFFERS: False, "gradient_as_bucket_view": True}
        with nullcontext() if compiled else no_dynamo():
            self.ddp: nn.Module = ray.train.torch.prepare_model(
                module, move_to_device=device, parallel_strategy_kwargs=ddp_options
            )
            self.optimizers = build(module)
        if gradients == "bf16" and isinstance(self.ddp, nn.parallel.DistributedDataParallel):
            self.ddp.register_comm_hook(None, bf16_compress_hook)
        if compiled:
            # One program for each size of the images, rather than a slower one for any.
            self.ddp.compile(dynamic=False)

    def loss(self, model: nn.Module, images: Tensor, labels: Tensor, smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
        """Summed cross-entropy (scalar, float32) and logits (B, classes) of normalised images (B, 3, H, W)."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            logits = model(images)
        return F.cross_entropy(logits.float(), labels, reduction="sum", label_smoothing=smoothing), logits

    def settle_reducer(self, batch_size: int, image_size: int) -> None:
        """Run one backward pass, after which DDP sorts its buckets by the order in which gradients came. A collective.

        With three or more ranks the buckets decide the order of summation. A resumed run would sum its first step in
        another order than the uninterrupted one, if both did not settle before the first real step.
        """
        if not dist.is_initialized():
            return
        buffers = self.buffer_vector()
        images = torch.zeros(batch_size, 3, image_size, image_size, device=self.device, dtype=self.dtype)
        labels = torch.zeros(batch_size, dtype=torch.int64, device=self.device)
        self.loss(self.ddp, images.to(memory_format=torch.channels_last), labels)[0].backward()
        self.optimizers.zero_grad()
        self.set_buffers(buffers)

    def buffer_vector(self) -> Tensor:
        """The running statistics of batch normalisation in one float64 vector, on the device."""
        buffers = [buffer.detach().reshape(-1).double() for buffer in self.module.buffers()]
        return torch.cat(buffers) if buffers else torch.zeros(0, dtype=torch.float64, device=self.device)

    def set_buffers(self, vector: Tensor) -> None:
        """Take up running statistics as `buffer_vector` gave them."""
        start = 0
        for buffer in self.module.buffers():
            part = vector[start : start + buffer.numel()]
            buffer.copy_(part.view(buffer.shape))
            start += buffer.numel()

    def average_buffers(self) -> None:
        """Average the running statistics over the ranks. A collective."""
        if dist.is_initialized():
            vector = self.buffer_vector()
            dist.all_reduce(vector)
            self.set_buffers(vector / dist.get_world_size())

    def plain_model(self) -> VGG11:
        """The model in the form in which it is stored."""
        return self.module.to_vgg11() if isinstance(self.module, FastVGG11) else self.module

    def state(self) -> dict[str, Any]:
        """Weights, optimizers, and every rank's running statistics. A collective."""
        vector = self.buffer_vector()
        vectors = [vector]
        if dist.is_initialized():
            vectors = [torch.empty_like(vector) for _ in range(dist.get_world_size())]
            dist.all_gather(vectors, vector)
        return {
            "parameters": {name: parameter.detach() for name, parameter in self.module.named_parameters()},
            "buffers": vectors,
            "optimizers": self.optimizers.state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take up what `state` gave. On another number of ranks, all take the average of the running statistics.

        Raises:
            ValueError: if it is the state of another model.
        """
        parameters = dict(self.module.named_parameters())
        shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
        saved_shapes = {name: tuple(parameter.shape) for name, parameter in state["parameters"].items()}
        if shapes != saved_shapes:
            different = sorted(name for name in shapes | saved_shapes if shapes.get(name) != saved_shapes.get(name))
            name = different[0]
            raise ValueError(
                f"the checkpoint is of another model: {name} has the shape {saved_shapes.get(name)} there and "
                f"{shapes.get(name)} here"
            )
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(state["parameters"][name])
        vectors = state["buffers"]
        world_size = dist.get_world_size() if dist.is_initialized() else 1
        rank = dist.get_rank() if dist.is_initialized() else 0
        vector = vectors[rank] if len(vectors) == world_size else torch.stack(vectors).mean(dim=0)
        self.set_buffers(vector.to(self.device))
        self.optimizers.load_state(state["optimizers"])
