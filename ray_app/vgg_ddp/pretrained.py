"""Weights to begin with: of a former run, or of torchvision's vgg11_bn."""

import io
import pickle
import posixpath
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vgg_ddp.flags import UsageError
from vgg_ddp.storage import Folder

STATE_FILES = (".pth", ".pt")


@dataclass(frozen=True)
class Pretrained:
    """The tensors of a model, by torchvision's names; and its classes, where they are known."""

    tensors: dict[str, npt.NDArray[np.float32]]
    class_names: tuple[str, ...] | None


def read_pretrained(location: str, positive_scales: bool) -> Pretrained:
    """Read a run folder, a .safetensors file of a run, or a .pth file with a state dict of torchvision's vgg11_bn.

    Raises:
        UsageError: if there is no such file, or it is not of a VGG11 with batch normalisation; or if its scales have to
            be positive, and are not.
    """
    pretrained = _read_vgg11_bn(location) if location.endswith(STATE_FILES) else _read_run(location)
    scales = [values for name, values in pretrained.tensors.items() if name.endswith("weight") and values.ndim == 1]
    if positive_scales and not all((values > 0).all() for values in scales):
        raise UsageError(
            f"--init-from {location}: its batch normalisation has scales that are not positive, which --recipe fast "
            "cannot take up: use --recipe classic."
        )
    return pretrained


def _read_run(location: str) -> Pretrained:
    # The driver needs torch for nothing else.
    from vgg_ddp.inference import load_classifier

    classifier = load_classifier(location)
    tensors = {name: tensor.numpy() for name, tensor in classifier.model.state_dict().items()}
    return Pretrained(tensors, classifier.class_names)


def _read_vgg11_bn(location: str) -> Pretrained:
    from vgg_ddp.model import VGG11

    state = _read_state(location)
    expected = {name: tensor.shape for name, tensor in VGG11(1).features.state_dict(prefix="features.").items()}
    for name, shape in expected.items():
        given = tuple(state[name].shape) if name in state else None
        if given != tuple(shape):
            raise UsageError(
                f"--init-from {location}: {name} is {'missing' if given is None else given}, expected "
                f"{tuple(shape)} as in torchvision's vgg11_bn."
            )
    # torchvision's three linear layers are made for 7 x 7 pixels and other classes.
    return Pretrained({name: state[name] for name in expected}, None)


def _read_state(location: str) -> dict[str, npt.NDArray[np.float32]]:
    import torch

    try:
        folder = Folder.at(posixpath.dirname(location) or ".")
        content = folder.read(posixpath.basename(location))
        # Tensors only: a file from elsewhere shall run no code.
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        return {name: tensor.float().numpy() for name, tensor in state.items()}
    except pickle.UnpicklingError as error:
        raise UsageError(
            f"--init-from {location}: expected a file with a state dict; this one is none, or holds more than tensors."
        ) from error
    except (OSError, EOFError, LookupError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        reason = (str(error) or "it is empty").splitlines()[0]
        raise UsageError(f"--init-from {location}: expected a file with a state dict ({reason}).") from error
