"""A SageMaker job on one host: stopped, resumed, and its model served by SageMaker's own toolkit and model server."""

import io
import json
import os
import shutil
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sagemaker_entry.client.endpoint import ENVIRONMENT
from support.command import PATIENCE, ROOT, SAMPLE, wait_until
from support.container import SYSTEM_PATH, Container, Network, images_environment, make_container
from support.job_checks import OneHost, assert_model, steps
from vgg_ddp.data.decode import decode_image
from vgg_ddp.weights.model_file import load_classifier

pytestmark = pytest.mark.e2e
DECODER = ("__init__", "decode", "image_files", "opaque")
SERVE = "from sagemaker_inference import model_server; model_server.start_model_server()"


def test_one_host_saves_a_checkpoint_on_sigterm_within_a_minute(one_host: OneHost) -> None:
    assert one_host.first_code == 143, one_host.first.log
    assert one_host.seconds_to_stop < 60
    assert one_host.first.failure and one_host.first.failure.startswith("stopped by SIGTERM")
    (saved,) = steps(r"Stopped after step (\d+)", one_host.first)
    assert 0 < saved < 50
    assert not list((one_host.first.ml / "model").iterdir())


def test_restarted_job_resumes_at_that_step_and_writes_a_model(one_host: OneHost) -> None:
    assert one_host.second_code == 0, one_host.second.log
    assert one_host.second.failure is None
    saved = steps(r"Stopped after step (\d+)", one_host.first)
    assert steps(r"Resumed at step (\d+)", one_host.second) == saved
    assert_model(one_host.second)


def test_object_store_is_on_disk_if_shared_memory_is_tiny(one_host: OneHost) -> None:
    assert "--plasma-directory=/tmp" in one_host.first.log
    assert "bundled CIFAR-10 sample: 5,000 training" in one_host.first.log


def test_one_host_listens_on_loopback_only_and_requires_the_token(one_host: OneHost) -> None:
    assert one_host.exposed == []
    assert one_host.dashboard_without_token == "401"
    assert one_host.dashboard_with_token == "200"
    assert len(one_host.token) == 64
    assert one_host.token not in json.dumps(one_host.request, default=str) + one_host.first.log + one_host.second.log


class Response(NamedTuple):
    status: int
    body: str


@pytest.fixture(scope="module")
def served(one_host: OneHost, net: Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    """A container that serves the job's model, started as SageMaker does."""
    python, missing = images_environment()
    if missing:
        pytest.skip(missing)
    if not shutil.which("java"):
        pytest.skip("needs Java 11 or later for the model server")
    host = make_container("serve", tmp_path_factory.mktemp("serve") / "host", net)
    (host.root / "hosts").write_text(f"127.0.0.1 localhost\n{host.address} serve\n")
    shutil.copytree(one_host.second.ml / "model", host.ml / "model", dirs_exist_ok=True)
    environment = ENVIRONMENT | {
        "PATH": f"{python.parent}:{SYSTEM_PATH}",
        "SAGEMAKER_MODEL_SERVER_WORKERS": "1",
        "LOG_LOCATION": "/tmp/logs",
        "METRICS_LOCATION": "/tmp/logs",
    }
    host.connect(net)
    try:
        host.start([str(python), "-c", SERVE], environment, shm="64m")
        wait_until(lambda: host.exited() or is_ready(host))
        assert not host.exited(), host.log
        yield host
    finally:
        host.remove()


def call(host: Container, path: str, body: bytes | None = None, **headers: str) -> Response:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(f"http://{host.address}:8080{path}", data=body, headers=names)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return Response(answer.status, answer.read().decode())
    except urllib.error.HTTPError as error:
        return Response(error.code, error.read().decode())


def is_ready(host: Container) -> bool:
    try:
        return call(host, "/ping").status == 200
    except OSError:
        return False


def invoke(host: Container, body: bytes, content_type: str, accept: str = "application/json") -> Response:
    return call(host, "/invocations", body, Content_Type=content_type, Accept=accept)


@pytest.fixture(scope="module")
def encoded_images() -> list[bytes]:
    """The first eight test images of the bundled sample, still encoded."""
    column = pq.read_table(SAMPLE / "test.parquet").slice(0, 8).column("img").combine_chunks()
    images: list[bytes] = column.field("bytes").to_pylist()
    return images


@pytest.fixture(scope="module")
def pixels(encoded_images: list[bytes]) -> npt.NDArray[np.uint8]:
    return np.stack([decode_image(image, 32) for image in encoded_images])


def npy(array: npt.NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def rows(response: Response) -> list[list[float]]:
    assert response.status == 200, response.body
    return [list(row["probabilities"].values()) for row in json.loads(response.body)["predictions"]]


@pytest.fixture(scope="module")
def expected(one_host: OneHost, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """The probabilities that the training program computes for these images."""
    probabilities: npt.NDArray[np.float32] = (
        load_classifier(str(one_host.second.ml / "model")).probabilities(pixels).numpy()
    )
    return probabilities


def test_png_npy_and_json_predictions_equal_those_of_the_training_program(
    served: Container,
    encoded_images: list[bytes],
    pixels: npt.NDArray[np.uint8],
    expected: npt.NDArray[np.float32],
) -> None:
    assert call(served, "/ping").status == 200
    single = [rows(invoke(served, image, "image/png"))[0] for image in encoded_images]
    np.testing.assert_allclose(single, expected, atol=1e-5)
    np.testing.assert_allclose(rows(invoke(served, npy(pixels), "application/x-npy")), expected, atol=1e-5)
    body = json.dumps({"instances": pixels.tolist()}).encode()
    np.testing.assert_allclose(rows(invoke(served, body, "application/json")), expected, atol=1e-5)


def test_response_names_the_most_probable_class(served: Container, encoded_images: list[bytes]) -> None:
    (prediction,) = json.loads(invoke(served, encoded_images[0], "image/png", "*/*").body)["predictions"]
    assert prediction["probability"] == max(prediction["probabilities"].values())
    assert prediction["probabilities"][prediction["class"]] == prediction["probability"]


def test_jpeg_of_another_size_is_resized(served: Container) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (200, 100), (200, 30, 30)).save(stream, "JPEG")
    assert sum(rows(invoke(served, stream.getvalue(), "image/jpeg"))[0]) == pytest.approx(1, abs=1e-4)


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
def test_bad_request_gets_a_4xx_status_and_the_reason(case: str, served: Container) -> None:
    body, content_type, status, text = BAD_REQUESTS[case]
    response = invoke(served, body, content_type)
    assert response.status == status, response
    assert text in response.body.splitlines()[0], response


def test_request_without_a_content_type_gets_status_415(served: Container, encoded_images: list[bytes]) -> None:
    with socket.create_connection((served.address, 8080), 60) as connection:
        request = f"POST /invocations HTTP/1.1\r\nHost: serve\r\nContent-Length: {len(encoded_images[0])}\r\n\r\n"
        connection.sendall(request.encode() + encoded_images[0])
        assert connection.recv(1000).startswith(b"HTTP/1.1 415 ")


def test_thousand_images_of_12_mb_in_total_are_classified(served: Container) -> None:
    images = np.random.default_rng(0).integers(0, 256, (1000, 64, 64, 3), dtype=np.uint8)
    assert len(rows(invoke(served, npy(images), "application/x-npy"))) == 1000


def test_unknown_response_format_is_rejected(served: Container, encoded_images: list[bytes]) -> None:
    response = invoke(served, encoded_images[0], "image/png", accept="text/csv")
    assert response.status == 406
    assert "expected application/json" in response.body


def test_server_survives_bad_requests(served: Container, encoded_images: list[bytes]) -> None:
    assert len(rows(invoke(served, encoded_images[0], "image/png"))) == 1


def test_archive_contains_only_the_script_and_its_modules(one_host: OneHost) -> None:
    code = one_host.second.ml / "model" / "code"
    files = {str(Path(root, name).relative_to(code)) for root, _, names in os.walk(code) for name in names}
    package = {f"vgg_ddp/data/{name}.py" for name in DECODER}
    package |= {f"vgg_ddp/serving/{name}.py" for name in ("__init__", "contract", "network")}
    package |= {f"vgg_ddp/model/{path.name}" for path in (ROOT / "ray_app/vgg_ddp/model").glob("*.py")}
    assert files == {"inference.py", *package}
