"""Classify images at an endpoint whose container is AWS's Ray Serve image: the application `deployment:app`.

The model archive contains this file in `code/`, which is on the container's Python path, with the part of `vgg_ddp`
that it imports. The container forwards /invocations to this application, and answers /ping itself.
"""

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from ray import serve
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from vgg_ddp.serving.contract import RequestError, check_accept, decode_request, encode_response
from vgg_ddp.serving.network import load_network, predict

GPUS = torch.cuda.device_count()


class Classifier:
    """Decodes requests in several threads, and classifies one request at a time."""

    def __init__(self) -> None:
        # Ray limits torch to the CPUs that a replica reserves, which is one.
        torch.set_num_threads(os.cpu_count() or 1)
        model = Path(os.environ.get("SM_MODEL_DIR", "/opt/ml/model")) / "model.safetensors"
        self._network = load_network(model.read_bytes(), torch.device("cuda" if GPUS else "cpu"))
        # The same thread for all requests: each thread that uses torch has OpenMP threads of its own.
        self._thread = ThreadPoolExecutor(1, "network")

    async def __call__(self, request: Request) -> Response:
        """The response to a request, of any path."""
        try:
            body, content_type = await request.body(), request.headers.get("content-type")
            images = await asyncio.to_thread(decode_request, body, content_type)
            check_accept(request.headers.get("accept", "*/*"))
        except RequestError as error:
            return PlainTextResponse(f"{error}\n", error.status)
        predictions = await asyncio.get_running_loop().run_in_executor(self._thread, predict, images, self._network)
        return Response(encode_response(predictions), media_type="application/json")


app = serve.deployment(num_replicas=GPUS or 1, ray_actor_options={"num_gpus": min(GPUS, 1)})(Classifier).bind()
