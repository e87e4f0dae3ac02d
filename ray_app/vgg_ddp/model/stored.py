"""Convert between the model that a run trains and the tensors in model.safetensors.

Most models are stored unchanged. A model that is stored in a different form than it is trained has two methods:
`to_stored` returns the module to store, and `from_stored` is its inverse.
"""

from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from vgg_ddp.model.build import build_model


@runtime_checkable
class HasStoredForm(Protocol):
    """A model that is stored in a different form than it is trained, such as `FastVGG11`."""

    def to_stored(self) -> nn.Module:
        """An equivalent module to store."""

    def from_stored(self, stored: nn.Module, with_head: bool) -> None:
        """Set the weights so that this is equivalent to `stored`, with or without the head (the last layer).

        Raises:
            ValueError: if these weights cannot be represented.
        """


def stored_form(model: nn.Module) -> nn.Module:
    """The module whose state dict is stored: usually the model itself."""
    return model.to_stored() if isinstance(model, HasStoredForm) else model


def load_stored(tensors: dict[str, Tensor], description: dict[str, Any]) -> nn.Module:
    """Build the model of a model.safetensors file for inference, from its tensors and the description in its metadata.

    Raises:
        KeyError, TypeError: if the description lacks an entry or has a value of the wrong type.
        RuntimeError: if the tensors do not fit the model.
        ValueError: if `build_model` builds another architecture now.
    """
    # Files of earlier versions do not name the recipe; they all contain a VGG11.
    recipe, architecture = description.get("recipe", "classic"), description["architecture"]
    model = stored_form(build_model(recipe, len(description["class_names"]), seed=0))
    if type(model).__name__ != architecture:
        raise ValueError(
            f"it contains a {architecture}, but build_model in vgg_ddp/model/build.py builds a {type(model).__name__} "
            f"for the recipe {recipe}"
        )
    model.load_state_dict(tensors)
    return model.eval()


def initialize_from(model: nn.Module, tensors: dict[str, Tensor], with_head: bool) -> list[str]:
    """Set a model's weights to those of a stored model, with or without the head (the last layer with parameters).

    Returns:
        The names of the tensors that were used.

    Raises:
        ValueError: if a tensor is missing, unknown, or of another shape, or the model cannot represent the weights.
    """
    stored = stored_form(model)
    *_, (last_name, _) = stored.named_parameters()
    head = last_name.rpartition(".")[0] + "."
    expected = {name: tensor for name, tensor in stored.state_dict().items() if with_head or not name.startswith(head)}
    for name, tensor in expected.items():
        shape = tuple(tensors[name].shape) if name in tensors else "missing"
        if shape != tuple(tensor.shape):
            raise ValueError(f"{name} is {shape}, expected {tuple(tensor.shape)}")
    if unknown := [name for name in tensors if name not in stored.state_dict() and not name.startswith(head)]:
        raise ValueError(f"{type(stored).__name__} has no {unknown[0]}")
    stored.load_state_dict({name: tensors[name] for name in expected}, strict=False)
    if isinstance(model, HasStoredForm):
        model.from_stored(stored, with_head)
    return list(expected)
