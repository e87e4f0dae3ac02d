"""Initial weights, compared with the models that they come from."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

from vgg_ddp.flags import UsageError
from vgg_ddp.model.fast_vgg import FastVGG11
from vgg_ddp.model.stored import initialize_from
from vgg_ddp.model.vgg import VGG11
from vgg_ddp.weights.pretrained import read_pretrained

Images = Tensor


@pytest.fixture(scope="module")
def theirs() -> nn.Module:
    """torchvision's model as if it were trained: scales, biases, and statistics differ between channels."""
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        model = torchvision.models.vgg11_bn(num_classes=5)
    # Its large linear layers are not loaded; a small one replaces them.
    model.classifier = nn.Sequential(nn.Linear(4, 5))
    model.features.to_empty(device="cpu")
    for layer in model.features:
        if isinstance(layer, nn.BatchNorm2d):
            for tensor, low, high in (
                (layer.weight.data, 0.5, 2.0),
                (layer.bias.data, -0.5, 0.5),
                (layer.running_mean, -0.2, 0.2),
                (layer.running_var, 0.5, 2.0),
            ):
                tensor.uniform_(low, high, generator=generator)
            layer.num_batches_tracked.zero_()
        if isinstance(layer, nn.Conv2d):
            bound = (6 / layer.weight[0].numel()) ** 0.5
            layer.weight.data.uniform_(-bound, bound, generator=generator)
            layer.bias.data.uniform_(-0.1, 0.1, generator=generator)
    return model.double().eval()


@pytest.fixture
def state_file(theirs: nn.Module, tmp_path: Path) -> Path:
    torch.save(theirs.state_dict(), tmp_path / "vgg11_bn.pth")
    return tmp_path / "vgg11_bn.pth"


@pytest.fixture(scope="module")
def images() -> Images:
    return torch.randn(4, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def loaded(model: VGG11 | FastVGG11, location: Path, with_head: bool) -> nn.Module:
    pretrained = read_pretrained(str(location), "fast" if isinstance(model, FastVGG11) else "classic")
    tensors = {name: torch.from_numpy(values) for name, values in pretrained.tensors.items()}
    initialize_from(model, tensors, with_head)
    return model.double().eval()


@torch.no_grad()
def test_features_equal_those_of_torchvision_weights(theirs: nn.Module, state_file: Path, images: Images) -> None:
    model = VGG11(3)
    head = model.classifier.weight.detach().clone()
    ours = loaded(model, state_file, with_head=False)
    torch.testing.assert_close(ours.features(images), theirs.features(images), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.classifier.weight, head.double())


@torch.no_grad()
def test_fast_features_equal_those_of_torchvision_up_to_the_last_scales(
    theirs: nn.Module, state_file: Path, images: Images
) -> None:
    ours = loaded(FastVGG11(3), state_file, with_head=False)
    last_scales = [layer.weight for layer in theirs.features if isinstance(layer, nn.BatchNorm2d)][-1]
    expected = theirs.features(images) / last_scales[:, None, None]
    torch.testing.assert_close(ours.features(images), expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("build", [lambda: VGG11(3), lambda: FastVGG11(3)], ids=["classic", "fast"])
def test_all_weights_of_a_run_with_the_same_classes_are_restored(
    build: Callable[[], VGG11 | FastVGG11], trained: VGG11, model_folder: Path, images: Images
) -> None:
    assert read_pretrained(str(model_folder), "fast").class_names == ("ant", "bee", "fly")
    ours = loaded(build(), model_folder, with_head=True)
    expected = trained.double()(images)
    if isinstance(ours, FastVGG11):
        # The fast model has no biases there.
        expected = expected - trained.classifier.bias
    trained.float()
    torch.testing.assert_close(ours(images), expected, rtol=1e-4, atol=1e-5)


def refusal(location: Path, recipe: str = "classic") -> str:
    with pytest.raises(UsageError) as error:
        read_pretrained(str(location), recipe)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_other_files_are_rejected_with_a_reason(theirs: nn.Module, tmp_path: Path) -> None:
    def save(content: object) -> Path:
        torch.save(content, tmp_path / "state.pth")
        return tmp_path / "state.pth"

    assert "No such file" in refusal(tmp_path / "gone.pth") and "--init-from" in refusal(tmp_path / "gone.pth")
    assert "expected a folder of a finished run" in refusal(tmp_path / "gone")
    without_norms = {"features.0.weight": torch.zeros(64, 3, 3, 3), "features.0.bias": torch.zeros(64)}
    assert "features.1.weight is missing, expected (64,)" in refusal(save(without_norms))
    assert "is missing, expected (64,)" in refusal(save({"features.0.weight": torch.zeros(64, 3, 3, 3)}))
    narrow = theirs.state_dict() | {"features.0.weight": torch.zeros(32, 3, 3, 3)}
    assert "features.0.weight is (32, 3, 3, 3), expected (64, 3, 3, 3)" in refusal(save(narrow))
    # Unpickling a whole module would run code from the file.
    assert "expected a file with a state dict" in refusal(save(theirs))
    (tmp_path / "text.pth").write_text("no state")
    assert "expected a file with a state dict" in refusal(tmp_path / "text.pth")
    (tmp_path / "text.pth").write_bytes(b"eight lines")
    assert "expected a file with a state dict" in refusal(tmp_path / "text.pth")
    (tmp_path / "empty.pth").write_bytes(b"")
    assert "expected a file with a state dict" in refusal(tmp_path / "empty.pth")


def test_nonpositive_scales_require_the_classic_recipe(theirs: nn.Module, tmp_path: Path) -> None:
    state = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    state["features.5.weight"][3] = -0.1
    torch.save(state, tmp_path / "state.pth")
    assert read_pretrained(str(tmp_path / "state.pth"), "classic")
    assert "use --recipe classic" in refusal(tmp_path / "state.pth", "fast")


def test_run_of_another_architecture_is_refused(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build_resnet(_recipe: str, num_classes: int, seed: int) -> nn.Module:  # noqa: ARG001
        return torchvision.models.resnet18(num_classes=num_classes)

    monkeypatch.setattr("vgg_ddp.model.stored.build_model", build_resnet)
    assert "it contains a VGG11, but build_model in vgg_ddp/model/build.py builds a ResNet" in refusal(model_folder)
