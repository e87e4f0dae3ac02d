"""Write model.safetensors at the end of a run, and load it as a classifier."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from vgg_ddp.model.conv import use_fast_convolutions
from vgg_ddp.model.preprocess import normalize
from vgg_ddp.model.stored import load_stored
from vgg_ddp.run.files import MODEL_FILE
from vgg_ddp.run.storage import Folder
from vgg_ddp.weights.model_bytes import METADATA_KEY, not_ours, read_description, read_model

BATCH = 500


@dataclass(frozen=True)
class Classifier:
    """A model with the class names and preprocessing that it was trained with."""

    model: nn.Module
    class_names: tuple[str, ...]
    image_size: int
    mean: Tensor
    std: Tensor

    @torch.no_grad()
    def probabilities(self, images: npt.NDArray[np.uint8], tta: bool = False) -> Tensor:
        """Class probabilities, float32 (N, classes), for uint8 images (N, image_size, image_size, 3).

        With test-time augmentation (`tta`), computed from the mean logits of six views.
        """
        parts = []
        for start in range(0, len(images), BATCH):
            batch = torch.from_numpy(images[start : start + BATCH]).to(self.mean.device)
            inputs = normalize(batch, self.mean, self.std, torch.float32)
            logits = self._mean_logits_of_views(inputs) if tta else self.model(inputs)
            parts.append(logits.softmax(dim=1).cpu())
        return torch.cat(parts)

    def _mean_logits_of_views(self, inputs: Tensor) -> Tensor:
        """Mean logits of images (N, 3, H, W) unshifted and shifted diagonally by one pixel, each also mirrored.

        As in https://arxiv.org/abs/2404.00498, section 3.5: the unshifted views have half of the total weight.
        """
        height, width = inputs.shape[2:]
        padded = F.pad(inputs, (1, 1, 1, 1), mode="reflect")
        shifted = [padded[:, :, offset : offset + height, offset : offset + width] for offset in (0, 2)]
        views = [(inputs, 0.25), *((view, 0.125) for view in shifted)]
        logits = [(self.model(view) + self.model(view.flip(3))) * weight for view, weight in views]
        return torch.stack(logits).sum(dim=0)


def load_classifier(location: str) -> Classifier:
    """Load a model from a run folder or a .safetensors file, on disk or at a URI.

    Raises:
        UsageError: if there is no model, or it cannot be loaded.
    """
    return build_classifier(read_model(location), location)


def build_classifier(content: bytes, location: str, device: str = "cpu") -> Classifier:
    """Build the classifier that the content of a model.safetensors file describes; `location` is shown in messages.

    Raises:
        UsageError: if it cannot be loaded.
    """
    description = read_description(content, location)
    try:
        tensors = load(content)
        model = load_stored(tensors, description)
        mean, std = torch.tensor(description["mean"]), torch.tensor(description["std"])
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise not_ours(location, error) from error
    if device == "cpu":
        use_fast_convolutions(model)
    model = model.to(memory_format=torch.channels_last).to(device)
    return Classifier(model, description["class_names"], description["image_size"], mean.to(device), std.to(device))


def write_model(
    run: Folder, stored: nn.Module, recipe: str, class_names: Sequence[str], preprocessing: dict[str, Any]
) -> None:
    """Write model.safetensors: plain tensors, with everything needed to use them in the file's metadata.

    `stored` is the `stored_form` of the trained model; `build_model` can rebuild it from the name of the recipe. The
    preprocessing consists of the image size and the channels' mean and standard deviation.
    """
    architecture = {"architecture": type(stored).__name__, "recipe": recipe}
    description = {**architecture, "class_names": list(class_names), **preprocessing}
    # Only one entry: safetensors writes several in random order, but equal models must give equal files.
    metadata = {METADATA_KEY: json.dumps(description, sort_keys=True)}
    # Copies, because safetensors rejects tensors that share memory, such as tied weights.
    tensors = {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in stored.state_dict().items()
    }
    run.write(MODEL_FILE, save(tensors, metadata))
