"""Requests to a server of a small model."""

import io
import json
import urllib.error
import urllib.request
from typing import NamedTuple

import numpy as np
from PIL import Image

from support.command import PATIENCE, ROOT
from support.random_model import Pixels

SERVE = ROOT / "ray_app" / "serve.py"


class Response(NamedTuple):
    status: int
    body: str


def png(image: Pixels) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def npy(images: Pixels) -> bytes:
    stream = io.BytesIO()
    np.save(stream, images)
    return stream.getvalue()


def call(port: int, path: str, body: object = None, **headers: str) -> Response:
    """GET, or POST with a body, a path of the server at a local port."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body, names)  # type: ignore[arg-type]
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return Response(answer.status, answer.read().decode())
    except urllib.error.HTTPError as error:
        return Response(error.code, error.read().decode())


def classify(port: int, body: bytes, content_type: str = "image/png") -> Response:
    return call(port, "/invocations", body, Content_Type=content_type)


def probabilities(response: Response) -> list[list[float]]:
    assert response.status == 200, response.body
    return [list(row["probabilities"].values()) for row in json.loads(response.body)["predictions"]]
