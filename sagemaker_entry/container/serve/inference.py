"""Classify images at an endpoint: the functions that SageMaker's PyTorch inference containers call.

The model archive contains this file in `code/`, with the part of `vgg_ddp` that it imports. It needs only torch, numpy
and Pillow, which these containers include.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from sagemaker_inference.errors import BaseInferenceToolkitError

from vgg_ddp.serving.contract import Pixels, RequestError, check_accept, decode_request, encode_response
from vgg_ddp.serving.network import Network, load_network, predict


@contextmanager
def errors_with_status() -> Iterator[None]:
    """Turn a RequestError into the error that makes the container respond with its status.

    The class of that error is not documented. Tested with sagemaker-inference 1.10.1 by test_sagemaker_one_host.py.
    """
    try:
        yield
    except RequestError as error:
        raise BaseInferenceToolkitError(error.status.value, str(error), error.status.phrase) from None


def model_fn(model_dir: str) -> Network:
    """Load the model on the GPU, if there is one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return load_network((Path(model_dir) / "model.safetensors").read_bytes(), device)


def input_fn(body: bytes | str, content_type: str | None) -> list[Pixels]:
    """The images of a request, each uint8 (H, W, 3).

    Raises:
        BaseInferenceToolkitError: with a 4xx status, and a message that says what was expected.
    """
    with errors_with_status():
        return decode_request(body, content_type)


def predict_fn(images: list[Pixels], model: Network) -> list[dict[str, float]]:
    """Probabilities by class name for each image."""
    return predict(images, model)


def output_fn(predictions: list[dict[str, float]], accept: str) -> str:
    """The most probable class and all probabilities of each image, as JSON.

    Raises:
        BaseInferenceToolkitError: with status 406 if the client does not accept JSON.
    """
    with errors_with_status():
        check_accept(accept)
    return encode_response(predictions)
