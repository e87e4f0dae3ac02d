"""Weights to begin with, against the models that they come from."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

from vgg_ddp.fast_vgg import FastVGG11
from vgg_ddp.flags import UsageError
from vgg_ddp.model import VGG11, build_model
from vgg_ddp.pretrained import read_pretrained

Images = Tensor


@pytest.fixture(scope="module")
def theirs() -> nn.Module:
    """torchvision's model as training leaves it: scales, shifts and statistics that differ from channel to channel."""
    generator = torch.Generator().manual_seed(0)
    model = torchvision.models.vgg11_bn(num_classes=5)
    for layer in model.features:
        if isinstance(layer, nn.BatchNorm2d):
            for tensor, low, high in (
                (layer.weight.data, 0.5, 2.0),
                (layer.bias.data, -0.5, 0.5),
                (layer.running_mean, -0.2, 0.2),
                (layer.running_var, 0.5, 2.0),
            ):
                tensor.uniform_(low, high, generator=generator)
        if isinstance(layer, nn.Conv2d):
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
    pretrained = read_pretrained(str(location), isinstance(model, FastVGG11))
    model.load({name: torch.from_numpy(values) for name, values in pretrained.tensors.items()}, with_head)
    return model.double().eval()


@torch.no_grad()
def test_features_are_torchvisions(theirs: nn.Module, state_file: Path, images: Images) -> None:
    model = build_model(3, seed=0)
    head = model.classifier.weight.detach().clone()
    ours = loaded(model, state_file, with_head=False)
    torch.testing.assert_close(ours.features(images), theirs.features(images), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.classifier.weight, head.double())


@torch.no_grad()
def test_fast_features_are_torchvisions_up_to_the_last_scales(
    theirs: nn.Module, state_file: Path, images: Images
) -> None:
    ours = loaded(FastVGG11(3), state_file, with_head=False)
    last_scales = [layer.weight for layer in theirs.features if isinstance(layer, nn.BatchNorm2d)][-1]
    expected = theirs.features(images) / last_scales[:, None, None]
    torch.testing.assert_close(ours.features(images), expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("build", [lambda: VGG11(3), lambda: FastVGG11(3)], ids=["classic", "fast"])
def test_former_run_of_the_same_classes_is_taken_up_whole(
    build: Callable[[], VGG11 | FastVGG11], trained: VGG11, model_folder: Path, images: Images
) -> None:
    assert read_pretrained(str(model_folder), True).class_names == ("ant", "bee", "fly")
    ours = loaded(build(), model_folder, with_head=True)
    expected = trained.double()(images)
    if isinstance(ours, FastVGG11):
        # It has no biases there.
        expected = expected - trained.classifier.bias
    trained.float()
    torch.testing.assert_close(ours(images), expected, rtol=1e-4, atol=1e-5)


def refusal(location: Path, positive_scales: bool = False) -> str:
    with pytest.raises(UsageError) as error:
        read_pretrained(str(location), positive_scales)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_other_files_are_refused_with_a_reason(theirs: nn.Module, tmp_path: Path) -> None:
    def save(content: object) -> Path:
        torch.save(content, tmp_path / "state.pth")
        return tmp_path / "state.pth"

    assert "No such file" in refusal(tmp_path / "gone.pth") and "--init-from" in refusal(tmp_path / "gone.pth")
    assert "expected a folder of a finished run" in refusal(tmp_path / "gone")
    assert "features.1.weight is (64, 64, 3, 3)" not in refusal(save(torchvision.models.vgg11().state_dict()))
    assert "is missing, expected (64,)" in refusal(save({"features.0.weight": torch.zeros(64, 3, 3, 3)}))
    narrow = theirs.state_dict() | {"features.0.weight": torch.zeros(32, 3, 3, 3)}
    assert "features.0.weight is (32, 3, 3, 3), expected (64, 3, 3, 3)" in refusal(save(narrow))
    # A whole module would run code of the file's.
    assert "expected a file with a state dict" in refusal(save(theirs))
    (tmp_path / "text.pth").write_text("no state")
    assert "expected a file with a state dict" in refusal(tmp_path / "text.pth")
    (tmp_path / "text.pth").write_bytes(b"eight lines")
    assert "expected a file with a state dict" in refusal(tmp_path / "text.pth")
    (tmp_path / "empty.pth").write_bytes(b"")
    assert "expected a file with a state dict" in refusal(tmp_path / "empty.pth")


def test_scales_that_are_not_positive_are_for_classic_only(theirs: nn.Module, tmp_path: Path) -> None:
    state = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    state["features.5.weight"][3] = -0.1
    torch.save(state, tmp_path / "state.pth")
    assert read_pretrained(str(tmp_path / "state.pth"), positive_scales=False)
    assert "use --recipe classic" in refusal(tmp_path / "state.pth", positive_scales=True)
