"""The network behind an endpoint: load model.safetensors, and classify images of any size.

The archive of a SageMaker model contains a copy of this file, so it needs only torch, numpy and Pillow. In particular,
it works without the safetensors library, which SageMaker's images before PyTorch 2.6 lack.
"""

import json
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from vgg_ddp.model.conv import use_fast_convolutions
from vgg_ddp.model.preprocess import normalize
from vgg_ddp.model.stored import load_stored
from vgg_ddp.serving.contract import Pixels

BATCH = 100
DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"I64": torch.int64, "I32": torch.int32, "U8": torch.uint8, "BOOL": torch.bool},
}


class Network(NamedTuple):
    """A model on a device, and the training settings that prediction needs."""

    model: nn.Module
    class_names: list[str]
    image_size: int
    mean: Tensor
    std: Tensor
    device: torch.device


def load_network(content: bytes, device: torch.device) -> Network:
    """Load the content of a model.safetensors file for inference on a device."""
    tensors, description = read_safetensors(content)
    model = load_stored(tensors, description)
    if device.type == "cpu":
        use_fast_convolutions(model)
    mean, std = (torch.tensor(description[name], device=device) for name in ("mean", "std"))
    return Network(model.to(device), description["class_names"], description["image_size"], mean, std, device)


def read_safetensors(content: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors, and the description that training stored.

    The file consists of an 8-byte length, JSON, and the tensors' bytes.

    See https://huggingface.co/docs/safetensors/index#format.
    """
    size = int.from_bytes(content[:8], "little")
    header: dict[str, Any] = json.loads(content[8 : 8 + size])
    description: dict[str, Any] = json.loads(header.pop("__metadata__")["vgg_ddp"])
    values = memoryview(bytearray(content[8 + size :]))
    tensors = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        flat = torch.frombuffer(values[start:end], dtype=DTYPES[entry["dtype"]])
        tensors[name] = flat.reshape(entry["shape"])
    return tensors, description


def resize(image: Pixels, image_size: int) -> Pixels:
    """Resize an image (H, W, 3) as for training."""
    size = (image_size, image_size)
    if image.shape[:2] == size:
        return image
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))


@torch.no_grad()
def classify(images: list[Pixels], network: Network) -> list[dict[str, float]]:
    """Probabilities by class name for each image (image_size, image_size, 3)."""
    pixels = torch.from_numpy(np.stack(images)).to(network.device)
    logits = network.model(normalize(pixels, network.mean, network.std, torch.float32))
    return [dict(zip(network.class_names, row, strict=True)) for row in logits.softmax(dim=1).tolist()]


def predict(images: list[Pixels], network: Network) -> list[dict[str, float]]:
    """Probabilities by class name for each image, of any size and number."""
    predictions = []
    for start in range(0, len(images), BATCH):
        resized = [resize(image, network.image_size) for image in images[start : start + BATCH]]
        predictions += classify(resized, network)
    return predictions
