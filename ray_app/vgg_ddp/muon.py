"""Muon: momentum whose steps are made orthogonal, for the filters of convolutions.

See https://kellerjordan.github.io/posts/muon and https://docs.pytorch.org/docs/stable/generated/torch.optim.Muon.html,
which takes matrices only.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 3


class Muon(torch.optim.Optimizer):
    """Nesterov momentum on filters (O, I, 3, 3), orthogonalised as matrices (O, 9 I), whose norm is kept.

    Args:
        dtype: of the matrix products.
        share: whether each rank works out the steps of some filters and all give theirs to the others. Pays where ranks
            are on one machine and have few cores each, and keeps ranks equal whose products round differently.
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
        """Take one step. A collective if the work is shared."""
        (group,) = self.param_groups
        filters: list[Tensor] = group["params"]
        for weight in filters:
            velocity, gradient = self._velocity(weight), weight.grad
            assert gradient is not None
            torch.add(gradient, velocity, alpha=group["momentum"], out=velocity)
        for weight, update in zip(filters, self._updates(filters, group["momentum"]), strict=True):
            # Batch normalisation follows: only the direction of a filter matters, and a fixed norm keeps lr's meaning.
            weight.mul_(len(weight) ** 0.5 / weight.norm())
            weight.add_(update, alpha=-group["lr"])

    def _velocity(self, weight: Tensor) -> Tensor:
        state = self.state[weight]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        velocity: Tensor = state["momentum_buffer"]
        return velocity

    def _updates(self, filters: list[Tensor], momentum: float) -> list[Tensor]:
        """The orthogonal steps of all filters, in their shapes."""
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
        """The orthogonal step of a filter, by its gradient with Nesterov momentum."""
        assert weight.grad is not None
        direction = weight.grad.add(self._velocity(weight), alpha=momentum)
        # With channels last these are views: the order of columns does not matter.
        update: Tensor = orthogonalize(direction.permute(0, 2, 3, 1).flatten(1), self._dtype).unflatten(1, (3, 3, -1))
        return update.permute(0, 3, 1, 2)


def orthogonalize(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """Move the singular values of a matrix near 1, by a Newton-Schulz iteration.

    Each iteration maps x to a x + b x^3 + c x^5. It is worked out on the square of the matrix, so that only two large
    products are needed whatever the number of iterations. All products, and the result, are of `dtype`.
    """
    if len(matrix) > matrix.shape[1]:
        # The smaller of the two squares is the cheaper one, and none of its values is 0.
        return orthogonalize(matrix.T, dtype).T.contiguous()
    a, b, c = COEFFICIENTS
    scaled = (matrix / (matrix.norm() + 1e-7)).to(dtype)
    square = scaled @ scaled.T
    product: Tensor | None = None
    for iteration in range(ITERATIONS):
        # Added up in the matrix's own precision: next to the identity, bf16 would round small values away.
        factor = b * square.to(matrix.dtype) + c * (square @ square).to(matrix.dtype)
        factor.diagonal().add_(a)
        factor = factor.to(dtype)
        product = factor if product is None else factor @ product
        if iteration + 1 < ITERATIONS:
            square = factor @ square @ factor
    assert product is not None
    result: Tensor = product @ scaled
    return result


def assign(costs: Sequence[float], world_size: int) -> list[int]:
    """The rank that does each piece of work: the largest first, each to the rank that has least to do."""
    owners = [0] * len(costs)
    loads = [0.0] * world_size
    for index in sorted(range(len(costs)), key=lambda index: -costs[index]):
        owners[index] = loads.index(min(loads))
        loads[owners[index]] += costs[index]
    return owners
