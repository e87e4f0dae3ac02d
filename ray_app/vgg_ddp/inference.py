"""A trained model, ready to classify images."""

import json
import posixpath
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from vgg_ddp.batches import normalize
from vgg_ddp.flags import UsageError
from vgg_ddp.model import VGG11
from vgg_ddp.report import METADATA_KEY, MODEL_FILE
from vgg_ddp.storage import Folder

BATCH = 500


@dataclass(frozen=True)
class Classifier:
    """A model with the class names and the preprocessing that it was trained with."""

    model: VGG11
    class_names: tuple[str, ...]
    image_size: int
    mean: Tensor
    std: Tensor

    @torch.no_grad()
    def probabilities(self, images: npt.NDArray[np.uint8]) -> Tensor:
        """Probability of each class, float32 (N, classes), for uint8 images (N, image_size, image_size, 3)."""
        parts = []
        for start in range(0, len(images), BATCH):
            batch = torch.from_numpy(images[start : start + BATCH])
            logits = self.model(normalize(batch, self.mean, self.std, torch.float32))
            parts.append(logits.softmax(dim=1))
        return torch.cat(parts)


def load_classifier(location: str) -> Classifier:
    """Load a model from a run folder or a .safetensors file, on disk or at a URI.

    Raises:
        UsageError: if there is none, or it is not one that this program wrote.
    """
    content = _read_model(location)
    try:
        tensors, description = load(content), _description(content)
        class_names = tuple(description["class_names"])
        model = VGG11(len(class_names))
        model.load_state_dict(tensors)
        image_size = int(description["image_size"])
        mean, std = torch.tensor(description["mean"]), torch.tensor(description["std"])
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"{location} is no model of this program, or is damaged ({reason}).") from error
    model.eval()
    return Classifier(model.to(memory_format=torch.channels_last), class_names, image_size, mean, std)


def _read_model(location: str) -> bytes:
    try:
        folder = Folder.at(location)
        if location.endswith(".safetensors"):
            return Folder(folder.filesystem, posixpath.dirname(folder.path)).read(posixpath.basename(folder.path))
        return folder.read(MODEL_FILE)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{location}: expected a folder of a finished run (with {MODEL_FILE}) or a .safetensors file ({error})."
        ) from error


def _description(content: bytes) -> dict[str, Any]:
    """What `write_model` noted in the metadata of a safetensors file, which begins with a length of 8 bytes and JSON.

    See https://huggingface.co/docs/safetensors/index#format.
    """
    size = int.from_bytes(content[:8], "little")
    description: dict[str, Any] = json.loads(json.loads(content[8 : 8 + size])["__metadata__"][METADATA_KEY])
    return description
