"""Write model.safetensors at the end of a run, and load it as a classifier."""

import json
import posixpath
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

from vgg_ddp.flags import UsageError
from vgg_ddp.model.conv import use_fast_convolutions
from vgg_ddp.model.preprocess import normalize
from vgg_ddp.model.stored import load_stored
from vgg_ddp.run.files import MODEL_FILE
from vgg_ddp.run.storage import Folder

BATCH = 500
LONGEST_REASON = 300
METADATA_KEY = "vgg_ddp"


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
            batch = torch.from_numpy(images[start : start + BATCH])
            inputs = normalize(batch, self.mean, self.std, torch.float32)
            logits = self._mean_logits_of_views(inputs) if tta else self.model(inputs)
            parts.append(logits.softmax(dim=1))
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
    content = _read_model(location)
    try:
        tensors, description = load(content), _description(content)
        model, class_names = load_stored(tensors, description), tuple(description["class_names"])
        image_size = int(description["image_size"])
        mean, std = torch.tensor(description["mean"]), torch.tensor(description["std"])
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:LONGEST_REASON]
        raise UsageError(f"{location} cannot be loaded as a model of this program ({reason}).") from error
    use_fast_convolutions(model)
    return Classifier(model.to(memory_format=torch.channels_last), class_names, image_size, mean, std)


def _read_model(location: str) -> bytes:
    try:
        folder = Folder.at(location)
        if location.endswith(".safetensors"):
            return Folder(folder.filesystem, posixpath.dirname(folder.path)).read(posixpath.basename(folder.path))
        return folder.read(MODEL_FILE)
    except (OSError, ValueError) as error:
        # pyarrow's message for a missing file repeats the path and adds nothing.
        reason = "" if isinstance(error, FileNotFoundError) else f" ({error})"
        raise UsageError(
            f"{location}: expected a folder of a finished run (with {MODEL_FILE}), such as runs/NAME, or a "
            f".safetensors file{reason}."
        ) from error


def _description(content: bytes) -> dict[str, Any]:
    """The description that `write_model` put into a safetensors file's metadata, JSON after an 8-byte length.

    See https://huggingface.co/docs/safetensors/index#format.
    """
    size = int.from_bytes(content[:8], "little")
    description: dict[str, Any] = json.loads(json.loads(content[8 : 8 + size])["__metadata__"][METADATA_KEY])
    return description


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
