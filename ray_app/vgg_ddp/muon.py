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
            are on one machine and have few cores each.
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
        updates = self._orthogonalize([self._direction(weight, group["momentum"]) for weight in filters])
        for weight, update in zip(filters, updates, strict=True):
            # Batch normalisation follows: only the direction of a filter matters, and a fixed norm keeps lr's meaning.
            weight.mul_(len(weight) ** 0.5 / weight.norm())
            weight.add_(update, alpha=-group["lr"])

    def _direction(self, weight: Tensor, momentum: float) -> Tensor:
        """Gradient with Nesterov momentum, as a matrix (O, 9 I)."""
        state = self.state[weight]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        velocity: Tensor = state["momentum_buffer"]
        assert weight.grad is not None
        velocity.mul_(momentum).add_(weight.grad)
        # With channels last this is a view: the order of columns does not matter.
        return weight.grad.add(velocity, alpha=momentum).permute(0, 2, 3, 1).flatten(1)

    def _orthogonalize(self, matrices: list[Tensor]) -> list[Tensor]:
        """The steps of all filters, in their shapes."""
        if self._owners is None:
            steps = [orthogonalize(matrix, self._dtype) for matrix in matrices]
        else:
            rank = dist.get_rank()
            steps = [
                orthogonalize(matrix, self._dtype) if owner == rank else torch.empty_like(matrix, dtype=self._dtype)
                for matrix, owner in zip(matrices, self._owners, strict=True)
            ]
            for step, owner in zip(steps, self._owners, strict=True):
                dist.broadcast(step, owner)
        return [step.unflatten(1, (3, 3, -1)).permute(0, 3, 1, 2) for step in steps]


def orthogonalize(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """Move the singular values of a matrix with at most as many rows as columns near 1, by a Newton-Schulz iteration.

    Each iteration maps x to a x + b x^3 + c x^5. It is worked out on the square of the matrix, so that only two large
    products are needed whatever the number of iterations. All products, and the result, are of `dtype`.
    """
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
    """The rank that does each piece of work: the dearest first, each to the rank that has least to do."""
    owners = [0] * len(costs)
    loads = [0.0] * world_size
    for index in sorted(range(len(costs)), key=lambda index: -costs[index]):
        owners[index] = loads.index(min(loads))
        loads[owners[index]] += costs[index]
    return owners
