"""How prepare_model changes the model from build_model, and which models it rejects."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torchvision import models

from vgg_ddp.config import TrainConfig
from vgg_ddp.data.dataset import Dataset, Split
from vgg_ddp.job import Inputs, RefusedError
from vgg_ddp.model.build import build_model
from vgg_ddp.model.fast_vgg import FastVGG11
from vgg_ddp.weights.pretrained import Pretrained
from vgg_ddp.worker import model as worker_model
from vgg_ddp.worker.model import prepare_model

Prepare = Callable[..., nn.Module]
CLASSES = ("ant", "bee", "fly")


@pytest.fixture
def prepare(monkeypatch: pytest.MonkeyPatch) -> Prepare:
    """Prepares the model that `build` returns for a number of classes, for a run with one worker."""

    def prepare(
        build: Callable[[int], nn.Module] | None = None,
        recipe: str = "fast",
        batch_size: int = 4,
        pretrained: Pretrained | None = None,
        **settings: object,
    ) -> nn.Module:
        if build:
            monkeypatch.setattr(worker_model, "build_model", lambda _recipe, num_classes, _seed: build(num_classes))
        config = TrainConfig(recipe=recipe, num_workers=0, batch_size=batch_size, **settings)
        split = Split(np.zeros((4, 32, 32, 3), np.uint8), np.zeros(4, np.int64))
        dataset = Dataset("four images", split, split, CLASSES, (0.0,) * 3, (1.0,) * 3)
        return prepare_model(config, config.chosen_recipe(), Inputs(dataset, pretrained), world_size=1)

    return prepare


def momenta(model: nn.Module) -> set[float | None]:
    return {layer.momentum for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)}


def test_fast_recipe_sets_identity_filters_and_norm_momentum(prepare: Prepare) -> None:
    model = prepare()
    assert isinstance(model, FastVGG11)
    assert momenta(model) == {0.4}
    images = torch.randn(2, 64, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(model.stages()[1].convolution(images)[:, :64], images)


def test_classic_recipe_does_not_change_the_model(prepare: Prepare) -> None:
    random_state = torch.get_rng_state()
    model, built = prepare(recipe="classic"), build_model("classic", 3, seed=0)
    # The test batch changes neither the running statistics nor the random state.
    assert all(torch.equal(tensor, built.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert momenta(model) == {0.1}
    assert model.training


def test_custom_model_keeps_its_initial_weights_in_the_fast_recipe(prepare: Prepare) -> None:
    built = models.resnet18(num_classes=3)
    weights = {name: tensor.clone() for name, tensor in built.state_dict().items()}
    model = prepare(lambda _: built)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert momenta(model) == {0.4}


@pytest.mark.parametrize(("class_names", "with_head"), [(CLASSES, True), (("ant", "bee", "cow"), False), (None, False)])
def test_head_is_restored_only_for_the_same_classes(
    prepare: Prepare, class_names: tuple[str, ...] | None, with_head: bool
) -> None:
    earlier = models.resnet18(num_classes=3)
    tensors = {name: tensor.numpy() for name, tensor in earlier.state_dict().items()}
    model = prepare(lambda n: models.resnet18(num_classes=n), pretrained=Pretrained(tensors, class_names))
    assert torch.equal(model.conv1.weight, earlier.conv1.weight)
    assert torch.equal(model.fc.weight, earlier.fc.weight) is with_head


def test_model_without_filters_for_muon_is_refused(prepare: Prepare) -> None:
    with pytest.raises(RefusedError, match=r"followed by normalization; Sequential has none: use --recipe classic\.$"):
        prepare(lambda n: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(3600, n)))


@pytest.mark.parametrize(
    ("build", "settings", "reason"),
    [
        (
            lambda _: nn.Sequential(nn.Conv2d(3, 4, 64)),
            {},
            r"^build_model's Sequential cannot train on 2 image\(s\) of 32x32 pixels",
        ),
        (lambda n: models.resnet18(num_classes=n), {"batch_size": 1}, r"1 image\(s\) .* Expected more than 1 value"),
        (
            lambda n: models.VisionTransformer(224, 32, 1, 1, 8, 8, num_classes=n),
            {},
            r"Wrong image height! Expected 224 but got 32",
        ),
        (lambda _: models.resnet18(num_classes=7), {}, r"returns \(2, 7\) for 2 image\(s\): expected logits \(2, 3\)"),
        (lambda _: nn.Identity(), {}, r"^build_model's Identity returns \(2, 3, 32, 32\)"),
    ],
    ids=["images too small", "single pixel", "image size", "classes", "no logits"],
)
def test_model_that_does_not_support_the_images_is_rejected(
    prepare: Prepare, build: Callable[[int], nn.Module], settings: dict[str, int], reason: str
) -> None:
    with pytest.raises(RefusedError, match=reason) as refusal:
        prepare(build, recipe="classic", **settings)
    assert "\n" not in str(refusal.value)
