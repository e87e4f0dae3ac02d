"""The Ray Serve application: HTTP requests in, predictions for batches of images out.

`vgg_ddp.serving.app:build` is the import path for a Serve config file, `serve run` and `serve build`. This module needs
the packages of ray[serve].
"""

import asyncio
import math
import os
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import Any

import numpy as np
import ray
import torch
from pydantic import BaseModel
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from vgg_ddp.compat.ray_serve import listen_on_loopback
from vgg_ddp.compat.ray_variables import LOOPBACK_ONLY
from vgg_ddp.machine.gpus import can_use_gpus
from vgg_ddp.serving.config import MAX_BATCH
from vgg_ddp.serving.contract import (
    MAX_BYTES,
    Pixels,
    RequestError,
    check_accept,
    check_size,
    decode_request,
    encode_response,
)
from vgg_ddp.serving.network import Network, classify, load_network, resize
from vgg_ddp.weights.model_bytes import not_ours, read_model

NAME = "vgg-ddp"
# Requests that a replica accepts at the same time, at least.
MIN_ONGOING_REQUESTS = 32
# Requests that wait for a replica; further ones get status 503.
MAX_QUEUED_REQUESTS = 200
# How long a replica that is stopped has for the requests that it has accepted.
SECONDS_TO_FINISH = 20.0
# A replica that was killed is replaced after this time at the latest.
HEALTH_CHECK_SECONDS = 2.0


class Arguments(BaseModel, extra="forbid"):
    """The arguments of `build`: `args` of an application in a Serve config file."""

    model: str
    """Run folder or .safetensors file; a path that exists on every machine, or a URI (s3://...)."""
    max_batch: int = MAX_BATCH
    """Maximum number of images in a batch."""


class Replica:
    """Decodes requests in several threads, and classifies batches of their images in another one."""

    def __init__(self, model: str, max_batch: int, device: str) -> None:
        if LOOPBACK_ONLY.items() <= os.environ.items():
            listen_on_loopback()
        has_gpu = bool(ray.get_runtime_context().get_accelerator_ids()["GPU"])
        use_gpu = has_gpu and can_use_gpus(device, 1, "Serving")
        self._network = load_model(model, torch.device("cuda" if use_gpu else "cpu"))
        # The same thread for all batches: each thread that uses torch has OpenMP threads of its own.
        self._thread = ThreadPoolExecutor(1, "network")
        self._classify_together.set_max_batch_size(max_batch)
        self._idle = asyncio.Event()
        self._idle.set()

    async def __call__(self, request: Request) -> Response:
        """Respond as SageMaker's containers do: GET /ping, POST /invocations."""
        try:
            match request.method, request.url.path:
                case "GET", "/ping":
                    return JSONResponse({"status": "Healthy"})
                case "POST", "/invocations":
                    return await self._respond(request)
            raise RequestError(HTTPStatus.NOT_FOUND, "expected POST /invocations or GET /ping")
        except RequestError as error:
            return PlainTextResponse(f"{error}\n", error.status)

    async def _respond(self, request: Request) -> Response:
        body = await read_body(request)
        images = await asyncio.to_thread(self._decode, body, request.headers.get("content-type"))
        check_accept(request.headers.get("accept", "*/*"))
        predictions = await asyncio.gather(*map(self._classify, images))
        return Response(encode_response(predictions), media_type="application/json")

    def _decode(self, body: bytes, content_type: str | None) -> list[Pixels]:
        # Resized at once, because a large image takes much more memory.
        return [resize(image, self._network.image_size) for image in decode_request(body, content_type)]

    async def _classify(self, image: Pixels) -> dict[str, float]:
        # Ray Serve forms batches by time, even while the network is busy. Images that wait here form one batch.
        await self._idle.wait()
        return await self._classify_together(image)  # type: ignore[no-any-return]

    @serve.batch(batch_wait_timeout_s=0)  # type: ignore[untyped-decorator]
    async def _classify_together(self, images: list[Pixels]) -> list[dict[str, float]]:
        """Called with one image; Ray Serve collects the images of several calls."""
        self._idle.clear()
        try:
            return await self._classify_batch(images)
        finally:
            self._idle.set()

    async def _classify_batch(self, images: list[Pixels]) -> list[dict[str, float]]:
        return await asyncio.get_running_loop().run_in_executor(self._thread, classify, images, self._network)

    async def check_health(self) -> None:
        """Classify an image; Ray Serve replaces the replica if this fails or takes too long.

        Raises:
            RuntimeError: if the probabilities are not numbers.
        """
        size = self._network.image_size
        (row,) = await self._classify_batch([np.zeros((size, size, 3), np.uint8)])
        if not all(map(math.isfinite, row.values())):
            raise RuntimeError("the model's probabilities are not finite")


def load_model(location: str, device: torch.device) -> Network:
    """Load the model of a run folder, or a .safetensors file, on disk or at a URI.

    Raises:
        UsageError: if there is none, or it cannot be loaded.
    """
    content = read_model(location)
    try:
        return load_network(content, device)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise not_ours(location, error) from error


async def read_body(request: Request) -> bytes:
    """The body of a request.

    Raises:
        RequestError: with status 413 if it is too large.
    """
    body, size_bytes = bytearray(), 0
    async for part in request.stream():
        size_bytes += len(part)
        # The rest is read, because a client may not look for a response before it has sent everything, but not kept.
        if size_bytes <= MAX_BYTES:
            body += part
    check_size(size_bytes)
    return bytes(body)


def build(arguments: Arguments) -> serve.Application:
    """The application, for a Serve config file, which may change the options of its deployment, `Replica`."""
    return application(arguments.model, arguments.max_batch, "auto")


def application(model: str, max_batch: int, device: str, **options: Any) -> serve.Application:
    """The application, with options of Ray Serve for its deployment.

    With `device` auto, replicas that cannot use their GPU fall back to the CPU; with gpu, they fail.
    """
    deployment = serve.deployment(
        # One batch is classified while the next one arrives.
        max_ongoing_requests=max(2 * max_batch, MIN_ONGOING_REQUESTS),
        max_queued_requests=MAX_QUEUED_REQUESTS,
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=SECONDS_TO_FINISH,
        health_check_period_s=HEALTH_CHECK_SECONDS,
        **options,
    )
    return deployment(Replica).bind(model, max_batch, device)
