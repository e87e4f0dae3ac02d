"""Classify images at an endpoint: the functions that TorchServe and multi-model-server call in SageMaker's containers.

The model archive contains this file in `code/`, with the part of `vgg_ddp` that it imports. It needs only torch, numpy
and Pillow, which these containers include.
"""

from pathlib import Path
from typing import Any

import torch

from vgg_ddp.serving.contract import RequestError, check_accept, decode_request, encode_response
from vgg_ddp.serving.network import Network, load_network, predict


def model_fn(model_dir: str) -> Network:
    """Load the model on the GPU, if there is one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return load_network((Path(model_dir) / "model.safetensors").read_bytes(), device)


def transform_fn(
    model: Network, body: bytes | str, content_type: str | None, accept: str, context: Any
) -> tuple[str, str]:
    """The response to a request, and its content type.

    The status of an invalid request is set in the model server's context: the toolkit would turn an exception into a
    response with a traceback. Tested with sagemaker-inference 1.10.1 and sagemaker-pytorch-inference 2.0.25 by
    test_model_servers.py.
    """
    try:
        images = decode_request(body, content_type)
        check_accept(accept)
    except RequestError as error:
        context.set_response_status(code=error.status.value, phrase=error.status.phrase)
        return f"{error}\n", "text/plain"
    return encode_response(predict(images, model)), "application/json"
