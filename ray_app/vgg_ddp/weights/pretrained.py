"""Read initial weights: an earlier run, or a state dict of the same architecture, such as torchvision's vgg11_bn."""

import io
import pickle
import posixpath
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vgg_ddp.flags import UsageError
from vgg_ddp.run.storage import Folder

STATE_DICT_SUFFIXES = (".pth", ".pt")


@dataclass(frozen=True)
class Pretrained:
    """The tensors of a stored model by name, and its class names if known."""

    tensors: dict[str, npt.NDArray[np.float32]]
    class_names: tuple[str, ...] | None


def read_pretrained(location: str, recipe: str) -> Pretrained:
    """Read a run folder, a .safetensors file of a run, or a .pth file with a state dict.

    Raises:
        UsageError: if there is no such file, or its weights do not fit this recipe's model.
    """
    import torch

    from vgg_ddp.model.build import build_model
    from vgg_ddp.model.stored import initialize_from

    pretrained = _read_state_dict(location) if location.endswith(STATE_DICT_SUFFIXES) else _read_run(location)
    names = pretrained.class_names
    model = build_model(recipe, len(names or ("unknown",)), seed=0)
    tensors = {name: torch.from_numpy(values) for name, values in pretrained.tensors.items()}
    try:
        used = initialize_from(model, tensors, with_head=names is not None)
    except ValueError as error:
        raise UsageError(f"--init-from {location} does not fit the model of --recipe {recipe}: {error}.") from error
    # Drops the head of a .pth file, which is for other classes; that of torchvision's vgg11_bn takes 490 MB.
    return Pretrained({name: pretrained.tensors[name] for name in used}, names)


def _read_run(location: str) -> Pretrained:
    # Imports torch, which the driver does not need otherwise.
    from vgg_ddp.weights.model_file import load_classifier

    classifier = load_classifier(location)
    tensors = {name: tensor.numpy() for name, tensor in classifier.model.state_dict().items()}
    return Pretrained(tensors, classifier.class_names)


def _read_state_dict(location: str) -> Pretrained:
    import torch

    try:
        folder = Folder.at(posixpath.dirname(location) or ".")
        content = folder.read(posixpath.basename(location))
        # Tensors only: an untrusted file must not run code.
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        return Pretrained({name: tensor.float().numpy() for name, tensor in state.items()}, None)
    except pickle.UnpicklingError as error:
        raise UsageError(f"--init-from {location}: expected a file with a state dict of tensors only.") from error
    except (OSError, EOFError, LookupError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        reason = (str(error) or "it is empty").splitlines()[0]
        raise UsageError(f"--init-from {location}: expected a file with a state dict ({reason}).") from error
