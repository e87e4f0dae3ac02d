"""Requests and responses of the endpoints, without a server."""

import io
import json
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from vgg_ddp.serving.contract import (
    MAX_BYTES,
    RequestError,
    check_accept,
    decode_request,
    encode_response,
)
from vgg_ddp.serving.network import load_network, predict

Pixels = npt.NDArray[np.uint8]


def npy(array: npt.NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def status_of(body: bytes, content_type: str | None) -> tuple[int, str]:
    with pytest.raises(RequestError) as caught:
        decode_request(body, content_type)
    return caught.value.status.value, str(caught.value)


def test_png_npy_and_json_give_the_same_pixels(random_pixels: Pixels, encode: Callable[..., bytes]) -> None:
    from_png = [image for pixels in random_pixels for image in decode_request(encode(pixels), "image/png")]
    from_npy = decode_request(npy(random_pixels), "application/x-npy")
    from_json = decode_request(json.dumps({"instances": random_pixels.tolist()}).encode(), "Application/JSON; a=b")
    for images in (from_png, from_npy, from_json):
        np.testing.assert_array_equal(np.stack(images), random_pixels)


def test_text_is_decoded_like_bytes(random_pixels: Pixels) -> None:
    body = json.dumps({"instances": random_pixels[:1].tolist()})
    np.testing.assert_array_equal(decode_request(body, "application/json"), random_pixels[:1])


@pytest.mark.parametrize(
    ("body", "content_type", "status", "text"),
    [
        (b"hello", "image/png", 400, "not a valid image/png: not PNG or JPEG"),
        (b"x", None, 415, "content type : expected one of image/png, image/jpeg"),
        (b"{}", "application/json", 400, "not a valid application/json: 'instances'"),
        (b'{"instances": [[[[1, 2, 256]]]]}', "application/json", 400, "from 0 to 255"),
        (npy(np.zeros((2, 2, 3))), "application/x-npy", 400, "expected complete uint8"),
        (npy(np.zeros((1001, 1, 1, 3), np.uint8)), "application/x-npy", 400, "expected at most 1000"),
        (bytes(MAX_BYTES + 1), "image/png", 413, f"expected at most {MAX_BYTES}"),
    ],
)
def test_bad_request_has_a_status_and_a_reason(body: bytes, content_type: str | None, status: int, text: str) -> None:
    found, message = status_of(body, content_type)
    assert found == status
    assert text in message
    assert "\n" not in message


@pytest.mark.parametrize("accept", ["application/json", "*/*", "text/html, application/*;q=0.8"])
def test_clients_that_accept_json_are_served(accept: str) -> None:
    check_accept(accept)


def test_client_that_wants_another_format_gets_status_406() -> None:
    with pytest.raises(RequestError, match="accept text/csv: expected application/json") as caught:
        check_accept("text/csv")
    assert caught.value.status is HTTPStatus.NOT_ACCEPTABLE


def test_predictions_equal_the_reference_and_name_the_best_class(
    model_folder: Path, random_pixels: Pixels, expected_probabilities: npt.NDArray[np.float64]
) -> None:
    network = load_network((model_folder / "model.safetensors").read_bytes(), torch.device("cpu"))
    answer = json.loads(encode_response(predict(list(random_pixels), network)))["predictions"]
    for row, expected in zip(answer, expected_probabilities, strict=True):
        assert list(row["probabilities"]) == ["ant", "bee", "fly"]
        np.testing.assert_allclose(list(row["probabilities"].values()), expected, atol=1e-4)
        assert row["class"] == ("ant", "bee", "fly")[int(expected.argmax())]
        assert row["probability"] == row["probabilities"][row["class"]]


def test_images_of_any_size_and_number_are_resized_and_classified(model_folder: Path) -> None:
    network = load_network((model_folder / "model.safetensors").read_bytes(), torch.device("cpu"))
    images: list[Pixels] = [np.full((size % 7 + 1, 40, 3), size % 256, np.uint8) for size in range(205)]
    rows = predict(images, network)
    assert len(rows) == 205
    # Batches of other images change a prediction only by rounding.
    for index in (0, 99, 100, 204):
        (alone,) = predict([images[index]], network)
        assert alone == pytest.approx(rows[index], abs=1e-5)
