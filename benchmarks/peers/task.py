"""What the scripts of all peers share: settings, images, transforms, and a stopwatch.

The model is `VGG11` of this program, and the optimizer `Adam(lr=0.001)`, as on the pages of Ray and Lightning.
"""

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import Dataset
from torchvision.transforms import Compose, Normalize, RandomCrop, RandomHorizontalFlip, ToTensor

VARIABLE = "PEERS_TASK"
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
TRANSFORM = Compose([RandomCrop(32, padding=4), RandomHorizontalFlip(), ToTensor(), Normalize(MEAN, STD)])


@dataclass(frozen=True)
class Task:
    """The settings of a run. `batch_size` is that of each process; `output` is the folder to write to."""

    images: str
    output: str
    num_classes: int
    num_workers: int
    batch_size: int
    epochs: int

    def environment(self) -> dict[str, str]:
        """The variable that hands these settings to the script of a peer."""
        return {VARIABLE: json.dumps(asdict(self))}


def current_task() -> Task:
    """The settings that the benchmark has handed to this process."""
    return Task(**json.loads(os.environ[VARIABLE]))


class Images(Dataset[tuple[Any, int]]):
    """The training images in memory, decoded and transformed one by one, as with torchvision's CIFAR10."""

    def __init__(self, folder: str, transform: Callable[[Image.Image], Any]) -> None:
        self.images, self.labels = np.load(f"{folder}/train_images.npy"), np.load(f"{folder}/train_labels.npy")
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


def start_stopwatch(task: Task) -> None:
    """Write the time of each of this process's optimizer steps to a file."""
    file = Path(task.output, f"steps-{os.getpid()}").open("a", buffering=1)  # noqa: SIM115

    def write(*_: object) -> None:
        file.write(f"{time.time()}\n")

    register_optimizer_step_post_hook(write)
