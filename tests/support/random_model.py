"""A model with random weights whose predictions differ from image to image."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from vgg_ddp.model.build import build_model
from vgg_ddp.model.preprocess import normalize
from vgg_ddp.model.vgg import VGG11
from vgg_ddp.run.storage import Folder
from vgg_ddp.weights.model_file import write_model

CLASSES = ("ant", "bee", "fly")
Pixels = npt.NDArray[np.uint8]


def random_images(count: int) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def write_random_model(
    folder: Path, images: Pixels, class_names: Sequence[str] = CLASSES, logits_scale: float = 400.0
) -> Path:
    """A run folder with a VGG11 whose logits have a mean of zero on these images, so that their classes differ."""
    preprocessing = {"image_size": 32, "mean": (120.0, 115.0, 110.0), "std": (60.0, 55.0, 50.0)}
    network = build_model("classic", len(class_names), seed=1).eval()
    assert isinstance(network, VGG11)
    with torch.no_grad():
        network.classifier.weight.mul_(logits_scale)
        mean, std = (torch.tensor(preprocessing[name]) for name in ("mean", "std"))
        network.classifier.bias.sub_(network(normalize(torch.from_numpy(images), mean, std, torch.float32)).mean(dim=0))
    write_model(Folder.at(str(folder)), network, "classic", class_names, preprocessing)
    return folder
