"""A small model, and requests to a server of it."""

import io
import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from support.command import PATIENCE, ROOT
from vgg_ddp.model.build import build_model
from vgg_ddp.model.preprocess import normalize
from vgg_ddp.model.vgg import VGG11
from vgg_ddp.run.storage import Folder
from vgg_ddp.weights.model_file import write_model

SERVE = ROOT / "ray_app" / "serve.py"
CLASSES = ("ant", "bee", "fly")
Pixels = npt.NDArray[np.uint8]


class Response(NamedTuple):
    status: int
    body: str


def write_random_model(folder: Path) -> Path:
    """A run folder with a VGG11 whose predictions clearly differ between `random_images`."""
    preprocessing = {"image_size": 32, "mean": (120.0, 115.0, 110.0), "std": (60.0, 55.0, 50.0)}
    network = build_model("classic", len(CLASSES), seed=1).eval()
    assert isinstance(network, VGG11)
    with torch.no_grad():
        network.classifier.weight.mul_(400)
        mean, std = (torch.tensor(preprocessing[name]) for name in ("mean", "std"))
        network.classifier.bias.sub_(
            network(normalize(torch.from_numpy(random_images(20)), mean, std, torch.float32)).mean(dim=0)
        )
    write_model(Folder.at(str(folder)), network, "classic", CLASSES, preprocessing)
    return folder


def random_images(count: int) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


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
