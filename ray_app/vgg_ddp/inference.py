"""A trained model, ready to classify images."""

import json
import posixpath
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
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
    def probabilities(self, images: npt.NDArray[np.uint8], tta: bool = False) -> Tensor:
        """Probability of each class, float32 (N, classes), for uint8 images (N, image_size, image_size, 3).

        With test-time augmentation (`tta`), from the mean of six views' logits.
        """
        parts = []
        for start in range(0, len(images), BATCH):
            batch = torch.from_numpy(images[start : start + BATCH])
            inputs = normalize(batch, self.mean, self.std, torch.float32)
            logits = self._mean_logits_of_views(inputs) if tta else self.model(inputs)
            parts.append(logits.softmax(dim=1))
        return torch.cat(parts)

    def _mean_logits_of_views(self, inputs: Tensor) -> Tensor:
        """Logits of images (N, 3, H, W) as they are, and moved by a pixel both ways; each mirrored, too.

        After https://arxiv.org/abs/2404.00498, section 3.5: those in place count as much as all that are moved.
        """
        height, width = inputs.shape[2:]
        padded = F.pad(inputs, (1, 1, 1, 1), mode="reflect")
        moved = [padded[:, :, offset : offset + height, offset : offset + width] for offset in (0, 2)]
        views = [(inputs, 0.25), *((view, 0.125) for view in moved)]
        logits = [(self.model(view) + self.model(view.flip(3))) * weight for view, weight in views]
        return torch.stack(logits).sum(dim=0)


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
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
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
