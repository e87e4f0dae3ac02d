"""Models that are stored unchanged, and a model that is stored in a different form."""

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from vgg_ddp.model import stored
from vgg_ddp.model.build import build_model
from vgg_ddp.model.stored import initialize_from, load_stored, stored_form
from vgg_ddp.model.vgg import VGG11

CLASSES = ["ant", "bee"]


def test_plain_model_is_its_own_stored_form() -> None:
    model = nn.Linear(2, 2)
    assert stored_form(model) is model
    assert isinstance(stored_form(build_model("fast", 2, 0)), VGG11)


@pytest.mark.parametrize("recipe", ["classic", "fast"])
def test_stored_model_of_either_recipe_loads_for_inference(recipe: str) -> None:
    model = stored_form(build_model(recipe, 2, seed=5))
    description = {"architecture": "VGG11", "recipe": recipe, "class_names": CLASSES}
    loaded = load_stored(model.state_dict(), description)
    assert isinstance(loaded, VGG11) and not loaded.training
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.state_dict().items())


def test_model_stored_by_an_earlier_version_loads() -> None:
    model = VGG11(2)
    assert isinstance(load_stored(model.state_dict(), {"architecture": "VGG11", "class_names": CLASSES}), VGG11)


def test_other_architecture_than_that_of_build_model_is_named() -> None:
    description = {"architecture": "ResNet", "recipe": "classic", "class_names": CLASSES}
    with pytest.raises(
        ValueError, match=r"contains a ResNet, but build_model in .* builds a VGG11 for the recipe classic"
    ):
        load_stored(resnet18(num_classes=2).state_dict(), description)


def test_custom_model_is_loaded_through_build_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "build_model", lambda _recipe, num_classes, seed: resnet18(num_classes=num_classes))  # noqa: ARG005
    model = resnet18(num_classes=2)
    loaded = load_stored(model.state_dict(), {"architecture": "ResNet", "recipe": "fast", "class_names": CLASSES})
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), model.eval()(images))


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: torch.randn(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("with_head", [True, False])
def test_custom_model_starts_from_a_state_dict_with_or_without_its_head(with_head: bool) -> None:
    model = resnet18(num_classes=2)
    head = model.fc.weight.detach().clone()
    tensors = tensors_of(model if with_head else resnet18(num_classes=5))
    used = initialize_from(model, tensors, with_head)
    assert set(model.state_dict()) - set(used) == (set() if with_head else {"fc.weight", "fc.bias"})
    assert torch.equal(model.conv1.weight, tensors["conv1.weight"])
    assert torch.equal(model.fc.weight, tensors["fc.weight"] if with_head else head)


def test_tensor_that_is_missing_unknown_or_of_another_shape_is_named() -> None:
    model = resnet18(num_classes=2)
    tensors = tensors_of(model)
    with pytest.raises(ValueError, match=r"fc.weight is \(2, 512\), expected \(3, 512\)"):
        initialize_from(resnet18(num_classes=3), tensors, with_head=True)
    del tensors["bn1.bias"]
    with pytest.raises(ValueError, match=r"bn1.bias is missing, expected \(64,\)"):
        initialize_from(model, tensors, with_head=False)
    with pytest.raises(ValueError, match=r"^ResNet has no layer5\.weight$"):
        initialize_from(model, tensors_of(model) | {"layer5.weight": torch.zeros(1)}, with_head=True)
