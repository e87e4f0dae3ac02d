"""Classify images at an endpoint: the functions that SageMaker's PyTorch inference containers call.

The model archive contains this file in `code/`, with the part of `vgg_ddp` that it imports. It needs only torch, numpy
and Pillow, which these containers include.
"""

import io
import json
import tokenize
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from sagemaker_inference.errors import BaseInferenceToolkitError
from torch import Tensor, nn

from vgg_ddp.data.decode import decode_image
from vgg_ddp.model.conv import use_fast_convolutions
from vgg_ddp.model.preprocess import normalize
from vgg_ddp.model.stored import load_stored

# SageMaker's own limit for one request to an endpoint.
MAX_BYTES = 25 * 2**20
MAX_IMAGES = 1000
MAX_PIXELS = 4096 * 4096
BATCH = 100
# What the decoders raise for an invalid body.
DECODING_ERRORS = (ValueError, OSError, SyntaxError, TypeError, KeyError, RecursionError, tokenize.TokenError)
DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"I64": torch.int64, "I32": torch.int32, "U8": torch.uint8, "BOOL": torch.bool},
}
Pixels = npt.NDArray[np.uint8]


class Model(NamedTuple):
    """The network, and the training settings that prediction needs."""

    network: nn.Module
    class_names: list[str]
    image_size: int
    mean: Tensor
    std: Tensor
    device: torch.device


def model_fn(model_dir: str) -> Model:
    """Load model.safetensors without the safetensors library, which images before PyTorch 2.6 lack."""
    tensors, description = read_safetensors((Path(model_dir) / "model.safetensors").read_bytes())
    network = load_stored(tensors, description)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        use_fast_convolutions(network)
    mean, std = (torch.tensor(description[name], device=device) for name in ("mean", "std"))
    return Model(network.to(device), description["class_names"], description["image_size"], mean, std, device)


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


def bad_request(status: HTTPStatus, message: str) -> BaseInferenceToolkitError:
    """The error that makes the container respond with this status.

    Its class is not documented. Checked with sagemaker-inference 1.10.1; test_sagemaker_one_host.py checks it.
    """
    return BaseInferenceToolkitError(status.value, message, status.phrase)


def input_fn(body: bytes | str, content_type: str | None) -> list[Pixels]:
    """Images, each uint8 (H, W, 3), from PNG, JPEG, npy or JSON.

    Raises:
        BaseInferenceToolkitError: with a 4xx status, and a message that says what was expected.
    """
    if len(body) > MAX_BYTES:
        raise bad_request(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"{len(body)} bytes: expected at most {MAX_BYTES}")
    kind = (content_type or "").split(";")[0].strip().lower()
    decode = DECODERS.get(kind)
    if decode is None:
        expected = ", ".join(DECODERS)
        raise bad_request(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"content type {kind}: expected one of {expected}")
    try:
        return decode(body)
    except DECODING_ERRORS as error:
        raise bad_request(HTTPStatus.BAD_REQUEST, f"not a valid {kind}: {error}") from None


def _decode_image(body: bytes | str) -> list[Pixels]:
    encoded = body.encode() if isinstance(body, str) else bytes(body)
    return [decode_image(encoded, None, max_pixels=MAX_PIXELS)]


def _decode_npy(body: bytes | str) -> list[Pixels]:
    stream = io.BytesIO(body.encode() if isinstance(body, str) else body)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("expected version 1.0 of the npy format")
    shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    # np.load would allocate whatever size the header claims.
    if dtype != np.uint8 or len(shape) not in (3, 4) or int(np.prod(shape)) != len(body) - stream.tell():
        raise ValueError(f"{dtype} array {shape}, expected complete uint8 (H, W, 3) or (N, H, W, 3)")
    stream.seek(0)
    return _split(np.load(stream, allow_pickle=False))


def _decode_json(body: bytes | str) -> list[Pixels]:
    array = np.asarray(json.loads(body)["instances"])
    if array.dtype.kind not in "iu" or array.size == 0 or array.min() < 0 or array.max() > 255:
        raise ValueError('expected {"instances": [image, ...]}, each image rows of [red, green, blue] from 0 to 255')
    return _split(array.astype(np.uint8))


def _split(array: Pixels) -> list[Pixels]:
    images = array if array.ndim == 4 else array[None]
    if images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape:
        raise ValueError(f"array {array.shape}, expected (H, W, 3) or (N, H, W, 3)")
    if len(images) > MAX_IMAGES:
        raise ValueError(f"{len(images)} images, expected at most {MAX_IMAGES}")
    return list(images)


DECODERS: dict[str, Callable[[bytes | str], list[Pixels]]] = {
    "image/png": _decode_image,
    "image/jpeg": _decode_image,
    "application/x-npy": _decode_npy,
    "application/json": _decode_json,
}


@torch.no_grad()
def predict_fn(images: list[Pixels], model: Model) -> list[dict[str, float]]:
    """Probabilities by class name for each image. Images are resized as for training."""
    size = (model.image_size, model.image_size)
    predictions = []
    for start in range(0, len(images), BATCH):
        resized = [
            image
            if image.shape[:2] == size
            else np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
            for image in images[start : start + BATCH]
        ]
        pixels = torch.from_numpy(np.stack(resized)).to(model.device)
        logits = model.network(normalize(pixels, model.mean, model.std, torch.float32))
        predictions += [dict(zip(model.class_names, row, strict=True)) for row in logits.softmax(dim=1).tolist()]
    return predictions


def output_fn(predictions: list[dict[str, float]], accept: str) -> str:
    """The most probable class and all probabilities of each image, as JSON.

    Raises:
        BaseInferenceToolkitError: with status 406 if the client does not accept JSON.
    """
    kinds = {kind.split(";")[0].strip().lower() for kind in accept.split(",")}
    if not kinds & {"application/json", "*/*", "application/*"}:
        raise bad_request(HTTPStatus.NOT_ACCEPTABLE, f"accept {accept}: expected application/json")
    best = [max(row, key=lambda name: row[name]) for row in predictions]
    rows = zip(best, predictions, strict=True)
    answer = [{"class": name, "probability": row[name], "probabilities": row} for name, row in rows]
    return json.dumps({"predictions": answer})
