"""The model archive in AWS's inference images: Ray Serve, TorchServe, and multi-model-server give the same answers."""

import io
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sagemaker_entry.container.outputs import copy_code
from support.command import SAMPLE
from support.container import Network
from support.model_servers import ModelServer, Response, missing_for, running
from support.random_model import write_random_model
from vgg_ddp.data.decode import decode_image
from vgg_ddp.weights.model_file import load_classifier

pytestmark = pytest.mark.e2e
SERVERS = ("Ray Serve", "TorchServe", "multi-model-server")


@pytest.fixture(scope="module")
def encoded_images() -> list[bytes]:
    """The first eight test images of the bundled sample, still encoded."""
    column = pq.read_table(SAMPLE / "test.parquet").slice(0, 8).column("img").combine_chunks()
    images: list[bytes] = column.field("bytes").to_pylist()
    return images


@pytest.fixture(scope="module")
def pixels(encoded_images: list[bytes]) -> npt.NDArray[np.uint8]:
    return np.stack([decode_image(image, 32) for image in encoded_images])


@pytest.fixture(scope="module")
def archive(pixels: npt.NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The content of a model.tar.gz, with random weights."""
    folder = write_random_model(tmp_path_factory.mktemp("archive"), pixels)
    copy_code(folder / "code")
    return folder


@pytest.fixture(scope="module", params=SERVERS)
def server(
    request: pytest.FixtureRequest, archive: Path, net: Network, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ModelServer]:
    """Each server in turn; at the end, its log must be free of tracebacks."""
    missing = missing_for(request.param)
    if missing:
        pytest.skip(missing)
    with running(request.param, archive, net, tmp_path_factory.mktemp("serve")) as started:
        yield started
        assert "Traceback" not in started.host.log, started.host.log


def npy(array: npt.NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def rows(response: Response) -> list[list[float]]:
    assert response.status == 200, response.body
    return [list(row["probabilities"].values()) for row in json.loads(response.body)["predictions"]]


def test_png_npy_and_json_predictions_equal_those_of_the_training_program(
    server: ModelServer, archive: Path, encoded_images: list[bytes], pixels: npt.NDArray[np.uint8]
) -> None:
    expected = load_classifier(str(archive)).probabilities(pixels).numpy()
    single = [rows(server.invoke(image, "image/png"))[0] for image in encoded_images]
    np.testing.assert_allclose(single, expected, atol=1e-4)
    np.testing.assert_allclose(rows(server.invoke(npy(pixels), "application/x-npy")), expected, atol=1e-4)
    body = json.dumps({"instances": pixels.tolist()}).encode()
    np.testing.assert_allclose(rows(server.invoke(body, "application/json")), expected, atol=1e-4)


def test_response_names_the_most_probable_class(server: ModelServer, encoded_images: list[bytes]) -> None:
    (prediction,) = json.loads(server.invoke(encoded_images[0], "image/png", "*/*").body)["predictions"]
    assert prediction["probability"] == max(prediction["probabilities"].values())
    assert prediction["probabilities"][prediction["class"]] == prediction["probability"]


def test_jpeg_of_another_size_is_resized(server: ModelServer) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (200, 100), (200, 30, 30)).save(stream, "JPEG")
    assert sum(rows(server.invoke(stream.getvalue(), "image/jpeg"))[0]) == pytest.approx(1, abs=1e-4)


def header(*shape: int) -> bytes:
    """An npy file that ends after the header."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"shape": shape, "fortran_order": False, "descr": "|u1"})
    return stream.getvalue()


BAD_REQUESTS = {
    "not an image": (b"hello", "image/png", 400, "not a valid image/png"),
    "truncated image": (b"\x89PNG\r\n\x1a\n" + b"\0" * 20, "image/png", 400, "not a valid image/png"),
    "wrong type": (b"x", "text/plain", 415, "expected one of image/png, image/jpeg"),
    "floats": (npy(np.zeros((2, 2, 3))), "application/x-npy", 400, "expected complete uint8"),
    "truncated npy": (npy(np.zeros((4, 4, 3), np.uint8))[:-9], "application/x-npy", 400, "expected complete uint8"),
    "huge": (header(99_999, 99_999, 3), "application/x-npy", 400, "expected complete uint8"),
    "pickle": (npy(np.array([{}], dtype=object)), "application/x-npy", 400, "expected complete uint8"),
    "grayscale": (npy(np.zeros((4, 4, 1), np.uint8)), "application/x-npy", 400, "expected (H, W, 3)"),
    "not JSON": (b"{", "application/json", 400, "not a valid application/json"),
    "damaged header": (
        b"\x93NUMPY\x01\x00\x12\x00{'descr': '|u1', (\n",
        "application/x-npy",
        400,
        "not a valid application",
    ),
    "nested": (b"[" * 100_000, "application/json", 400, "not a valid application/json"),
    "no instances": (b"{}", "application/json", 400, "not a valid application/json"),
    "out of range": (b'{"instances": [[[[1, 2, 256]]]]}', "application/json", 400, "0 to 255"),
    "ragged": (b'{"instances": [[[[1, 2]], [[1, 2, 3]]]]}', "application/json", 400, "not a valid application/json"),
    "too many": (npy(np.zeros((1001, 1, 1, 3), np.uint8)), "application/x-npy", 400, "expected at most 1000"),
}


@pytest.mark.parametrize("case", BAD_REQUESTS)
def test_bad_request_gets_a_4xx_status_and_the_reason_in_one_line(case: str, server: ModelServer) -> None:
    body, content_type, status, text = BAD_REQUESTS[case]
    response = server.invoke(body, content_type)
    assert response.status == status, response
    (line,) = response.body.splitlines()
    assert text in line


def test_request_without_a_content_type_gets_status_415(server: ModelServer, encoded_images: list[bytes]) -> None:
    with socket.create_connection((server.host.address, server.port), 60) as connection:
        lines = f"POST {server.invocations} HTTP/1.1", "Host: serve", f"Content-Length: {len(encoded_images[0])}"
        connection.sendall("\r\n".join([*lines, "\r\n"]).encode() + encoded_images[0])
        assert connection.recv(1000).startswith(b"HTTP/1.1 415 ")


def test_request_of_24_mb_is_answered(server: ModelServer) -> None:
    images = np.random.default_rng(0).integers(0, 256, (500, 128, 128, 3), dtype=np.uint8)
    assert len(rows(server.invoke(npy(images), "application/x-npy"))) == 500


def test_unknown_response_format_is_rejected(server: ModelServer, encoded_images: list[bytes]) -> None:
    response = server.invoke(encoded_images[0], "image/png", accept="text/csv")
    assert response.status == 406
    assert "expected application/json" in response.body


def test_server_survives_bad_requests(server: ModelServer, encoded_images: list[bytes]) -> None:
    assert len(rows(server.invoke(encoded_images[0], "image/png"))) == 1
