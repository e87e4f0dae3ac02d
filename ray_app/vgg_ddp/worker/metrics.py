"""Sums that each rank accumulates on its device over an epoch."""

import torch
import torch.distributed as dist
from torch import Tensor


class Sums:
    """Sums of loss, correct predictions, and images; kept on the device, so that no step waits for a host copy."""

    def __init__(self, device: torch.device) -> None:
        self.values = torch.zeros(3, dtype=torch.float64, device=device)

    def add(self, loss_sum: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: its summed loss (scalar), logits (B, classes) and labels (B,)."""
        self.values[0] += loss_sum.detach()
        self.values[1] += (logits.detach().argmax(dim=1) == labels).sum()
        self.values[2] += len(labels)

    def restart(self) -> None:
        """Start over, in the same memory."""
        self.values.zero_()

    def total(self) -> list[float]:
        """The sums over all ranks. A collective (every rank must call it) and a device-to-host sync."""
        values = self.values.clone()
        if dist.is_initialized():
            dist.all_reduce(values)
        return [float(value) for value in values.tolist()]

    def restart_from(self, total: list[float], rank: int) -> None:
        """Continue from the sums that `total` returned: rank 0 gets them, and the other ranks start from zero."""
        self.restart()
        if rank == 0:
            self.values += torch.tensor(total, dtype=torch.float64, device=self.values.device)
