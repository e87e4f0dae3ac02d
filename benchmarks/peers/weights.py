"""The weights that a peer has saved, and their accuracy on the test images."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.task import MEAN, STD
from vgg_ddp.data.dataset import Split
from vgg_ddp.model.preprocess import normalize
from vgg_ddp.model.vgg import VGG11

BATCH = 500
# Where peers save the weights of the last epoch, and the key of the weights in a file that holds more.
PATTERNS = ("*.pt", "*.ckpt", "*.safetensors")
KEYS = ("MODEL_STATE", "state_dict")


def accuracy_on(output: Path, test: Split, num_classes: int) -> float:
    """The accuracy on a test split: the share of its images that the newest weights in a folder classify correctly."""
    model = VGG11(num_classes)
    model.load_state_dict(read_weights(output))
    model.eval()
    mean, std = (torch.tensor(values) * 255 for values in (MEAN, STD))
    correct = 0
    with torch.inference_mode():
        for start in range(0, len(test), BATCH):
            images = torch.from_numpy(test.images[start : start + BATCH])
            predicted = model(normalize(images, mean, std, torch.float32)).argmax(dim=1).numpy()
            correct += int((predicted == test.labels[start : start + BATCH]).sum())
    return correct / len(test)


def read_weights(output: Path) -> dict[str, Tensor]:
    """The newest weights in a folder, with the names that `VGG11` gives them."""
    files = [file for pattern in PATTERNS for file in output.rglob(pattern)]
    newest = max(files, key=lambda file: file.stat().st_mtime)
    if newest.suffix == ".safetensors":
        from safetensors.torch import load_file

        saved: dict[str, Any] = load_file(newest)
    else:
        saved = torch.load(newest, map_location="cpu")
    weights: dict[str, Tensor] = next((saved[key] for key in KEYS if key in saved), saved)
    return {name.removeprefix("model."): tensor for name, tensor in weights.items()}
