"""Muon: momentum with orthogonalized updates, for the filters of convolutions.

See https://kellerjordan.github.io/posts/muon and https://docs.pytorch.org/docs/stable/generated/torch.optim.Muon.html,
which supports only matrices.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from vgg_ddp.compat import torch_foreach as foreach

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 3


class Muon(torch.optim.Optimizer):
    """Nesterov momentum on filters (O, I, H, W) of fixed norm, with updates orthogonalized as matrices (O, H W I).

    Args:
        dtype: data type of the matrix products.
        share: whether each rank computes the updates of some filters and broadcasts them. Faster if the ranks share one
            machine with few cores each; required to keep ranks identical if their processors round differently.
    """

    def __init__(
        self, filters: Sequence[Tensor], lr: float, momentum: float, dtype: torch.dtype, share: bool = False
    ) -> None:
        super().__init__(filters, {"lr": lr, "momentum": momentum})
        self._dtype = dtype
        costs = [len(weight) * weight.numel() for weight in filters]
        self._owners = assign(costs, dist.get_world_size()) if share else None

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002 - torch's signature
        """Take an optimizer step. A collective if the work is shared."""
        (group,) = self.param_groups
        filters: list[Tensor] = group["params"]
        for weight in filters:
            velocity = self._velocity(weight)
            torch.add(_gradient(weight), velocity, alpha=group["momentum"], out=velocity)
        for weight, update in zip(filters, self._updates(filters, group["momentum"]), strict=True):
            # Normalization follows: only the direction of a filter matters, and a fixed norm keeps lr meaningful.
            weight.mul_(len(weight) ** 0.5 / weight.norm())
            # On GPUs, if the ranks share the work.
            if isinstance(group["lr"], Tensor):
                weight.sub_(update.to(weight.dtype) * group["lr"])
            else:
                weight.add_(update, alpha=-group["lr"])

    def _velocity(self, weight: Tensor) -> Tensor:
        state = self.state[weight]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        velocity: Tensor = state["momentum_buffer"]
        return velocity

    def _updates(self, filters: list[Tensor], momentum: float) -> list[Tensor]:
        """The orthogonalized updates of all filters, in the filters' shapes."""
        if self._owners is None:
            return [self._update(weight, momentum) for weight in filters]
        rank = dist.get_rank()
        updates = [
            self._update(weight, momentum)
            if owner == rank
            else torch.empty_like(weight, dtype=self._dtype, memory_format=torch.channels_last)
            for weight, owner in zip(filters, self._owners, strict=True)
        ]
        for update, owner in zip(updates, self._owners, strict=True):
            dist.broadcast(update, owner)
        return updates

    def _update(self, weight: Tensor, momentum: float) -> Tensor:
        """The orthogonalized update of a filter, from its gradient with Nesterov momentum."""
        direction = _gradient(weight).add(self._velocity(weight), alpha=momentum)
        # Views in channels_last memory; the order of the columns does not matter.
        matrix = orthogonalize(direction.permute(0, 2, 3, 1).flatten(1), self._dtype)
        update: Tensor = matrix.unflatten(1, (*weight.shape[2:], -1))
        return update.permute(0, 3, 1, 2)


def orthogonalize(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """Move the singular values of a matrix close to 1 with a Newton-Schulz iteration.

    Each iteration maps x to a x + b x^3 + c x^5. It is computed on the Gram matrix, so that any number of iterations
    takes only two large products. All products and the result have this `dtype`.
    """
    if len(matrix) > matrix.shape[1]:
        # The smaller of the two Gram matrices is cheaper, and has full rank.
        return orthogonalize(matrix.T, dtype).T.contiguous()
    a, b, c = COEFFICIENTS
    scaled = (matrix / (matrix.norm() + 1e-7)).to(dtype)
    square = scaled @ scaled.T
    product: Tensor | None = None
    for iteration in range(ITERATIONS):
        # Summed in the matrix's own precision: added to the identity, small values would be lost in bf16.
        factor = b * square.to(matrix.dtype) + c * (square @ square).to(matrix.dtype)
        factor.diagonal().add_(a)
        factor = factor.to(dtype)
        product = factor if product is None else factor @ product
        if iteration + 1 < ITERATIONS:
            square = factor @ square @ factor
    assert product is not None
    result: Tensor = product @ scaled
    return result


def _gradient(weight: Tensor) -> Tensor:
    assert weight.grad is not None
    return weight.grad


class BatchedMuon(Muon):
    """The same updates with a third fewer kernels, for GPUs: those of filters of the same shape in one batch."""

    def __init__(self, filters: Sequence[Tensor], lr: float, momentum: float, dtype: torch.dtype) -> None:
        super().__init__(filters, lr, momentum, dtype)
        self._roots = torch.tensor([len(weight) ** 0.5 for weight in filters], device=filters[0].device)
        shapes = sorted({tuple(weight.shape) for weight in filters})
        self._batches = [[i for i, weight in enumerate(filters) if tuple(weight.shape) == shape] for shape in shapes]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002 - torch's signature
        """Take an optimizer step; the learning rate is a number on the device, float32 ()."""
        (group,) = self.param_groups
        filters: list[Tensor] = group["params"]
        gradients = [_gradient(weight) for weight in filters]
        velocities = [self._velocity(weight) for weight in filters]
        foreach.mul_(velocities, group["momentum"])
        foreach.add_(velocities, gradients)
        directions = foreach.add(gradients, velocities, group["momentum"])
        scales = (self._roots / torch.stack(foreach.norm(filters))).unbind()
        for weight, scale in zip(filters, scales, strict=True):
            weight.mul_(scale)
        negative_lr = -group["lr"]
        for batch in self._batches:
            matrices = torch.stack([directions[i].permute(0, 2, 3, 1).flatten(1) for i in batch])
            steps = orthogonalize_batch(matrices, self._dtype).to(matrices.dtype) * negative_lr
            shape = filters[batch[0]].shape[2:]
            changes = [step.unflatten(1, (*shape, -1)).permute(0, 3, 1, 2) for step in steps]
            foreach.add_([filters[i] for i in batch], changes)


def orthogonalize_batch(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """`orthogonalize` for matrices (K, M, N) at once, with sums of products in one kernel."""
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonalize_batch(matrices.mT, dtype).mT
    a, b, c = COEFFICIENTS
    norms = torch.linalg.vector_norm(matrices, dim=(1, 2), keepdim=True)
    scaled = (matrices / (norms + 1e-7)).to(dtype)
    square = torch.bmm(scaled, scaled.mT)
    product: Tensor | None = None
    for iteration in range(ITERATIONS):
        factor = torch.baddbmm(square, square, square, beta=b, alpha=c)
        factor.diagonal(dim1=1, dim2=2).add_(a)
        product = factor if product is None else torch.bmm(factor, product)
        if iteration + 1 < ITERATIONS:
            square = torch.bmm(torch.bmm(factor, square), factor)
    assert product is not None
    return torch.bmm(product, scaled)


def assign(costs: Sequence[float], world_size: int) -> list[int]:
    """Assign each task to a rank: the most expensive task first, each to the least loaded rank."""
    owners = [0] * len(costs)
    loads = [0.0] * world_size
    for index in sorted(range(len(costs)), key=lambda index: -costs[index]):
        owners[index] = loads.index(min(loads))
        loads[owners[index]] += costs[index]
    return owners
