"""Classify a folder of images as tutorials do, for comparison with predict.py --images; no Ray.

    python -m benchmarks.speed.dataloader_loop runs/NAME photos predictions.parquet

One process computes, with all cores; torch's DataLoader decodes in one process per core.
"""

import argparse
import time
from pathlib import Path

import pandas as pd
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from vgg_ddp.machine.limits import usable_cores
from vgg_ddp.model.conv import FastConv2d
from vgg_ddp.weights.model_file import Classifier, load_classifier


class ImageFiles(Dataset[tuple[Tensor, str]]):
    """The images of a folder, with their paths."""

    def __init__(self, folder: Path, classifier: Classifier) -> None:
        self.files = sorted(file for file in folder.rglob("*") if file.is_file())
        mean, std = (classifier.mean / 255).tolist(), (classifier.std / 255).tolist()
        size = (classifier.image_size, classifier.image_size)
        self.transform = transforms.Compose(
            [transforms.Resize(size), transforms.ToTensor(), transforms.Normalize(mean, std)]
        )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        file = self.files[index]
        return self.transform(Image.open(file).convert("RGB")), str(file)


def use_plain_convolutions(model: nn.Module) -> None:
    """Undo what `load_classifier` replaces."""
    for layer in model.modules():
        if isinstance(layer, FastConv2d):
            layer.__class__ = nn.Conv2d


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("images", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--fast-convolutions", action="store_true", help="this program's, instead of torch's")
    options = parser.parse_args()
    classifier = load_classifier(options.model)
    if not options.fast_convolutions:
        use_plain_convolutions(classifier.model)
    loader = DataLoader(ImageFiles(options.images, classifier), options.batch_size, num_workers=usable_cores())
    paths: list[str] = []
    classes: list[int] = []
    shares: list[float] = []
    started, first = 0.0, 0
    with torch.inference_mode():
        for images, names in loader:
            best = classifier.model(images).softmax(dim=1).max(dim=1)
            paths += names
            classes += best.indices.tolist()
            shares += best.values.tolist()
            if not started:
                started, first = time.perf_counter(), len(paths)
    rate = (len(paths) - first) / (time.perf_counter() - started)
    names_of_classes = [classifier.class_names[index] for index in classes]
    pd.DataFrame({"path": paths, "class": names_of_classes, "probability": shares}).to_parquet(options.output)
    print(f"{len(paths):,} images classified, {rate:,.0f} images/s")


if __name__ == "__main__":
    main()
