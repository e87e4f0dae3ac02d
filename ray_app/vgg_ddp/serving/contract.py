"""Requests and responses of the endpoints: what SageMaker's containers and Ray Serve accept and answer.

The archive of a SageMaker model contains a copy of this file, so it needs only numpy and Pillow.
"""

import io
import json
import tokenize
from collections.abc import Callable
from http import HTTPStatus

import numpy as np
import numpy.typing as npt

from vgg_ddp.data.decode import decode_image

# SageMaker's own limit for one request to an endpoint.
MAX_BYTES = 25 * 2**20
MAX_IMAGES = 1000
MAX_PIXELS = 4096 * 4096
# What the decoders raise for an invalid body.
DECODING_ERRORS = (ValueError, OSError, SyntaxError, TypeError, KeyError, RecursionError, tokenize.TokenError)
Pixels = npt.NDArray[np.uint8]


class RequestError(Exception):
    """A request that cannot be answered; the message says what was expected."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


def check_size(size_bytes: int) -> None:
    """Check the size of a body, or of what has arrived of it.

    Raises:
        RequestError: with status 413 if it is too large.
    """
    if size_bytes > MAX_BYTES:
        message = f"{size_bytes} bytes: expected at most {MAX_BYTES}"
        raise RequestError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message)


def decode_request(body: bytes | str, content_type: str | None) -> list[Pixels]:
    """Images, each uint8 (H, W, 3), from PNG, JPEG, npy or JSON.

    Raises:
        RequestError: with status 400, 413 or 415.
    """
    check_size(len(body))
    kind = (content_type or "").split(";")[0].strip().lower()
    decode = DECODERS.get(kind)
    if decode is None:
        expected = ", ".join(DECODERS)
        raise RequestError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"content type {kind}: expected one of {expected}")
    try:
        return decode(body)
    except DECODING_ERRORS as error:
        raise RequestError(HTTPStatus.BAD_REQUEST, f"not a valid {kind}: {error}") from None


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


def check_accept(accept: str) -> None:
    """Check that the client accepts JSON.

    Raises:
        RequestError: with status 406 if it does not.
    """
    kinds = {kind.split(";")[0].strip().lower() for kind in accept.split(",")}
    if not kinds & {"application/json", "*/*", "application/*"}:
        raise RequestError(HTTPStatus.NOT_ACCEPTABLE, f"accept {accept}: expected application/json")


def encode_response(predictions: list[dict[str, float]]) -> str:
    """JSON with the most probable class and all probabilities of each image, from the probabilities by class name."""
    best = [max(row, key=lambda name: row[name]) for row in predictions]
    rows = zip(best, predictions, strict=True)
    answer = [{"class": name, "probability": row[name], "probabilities": row} for name, row in rows]
    return json.dumps({"predictions": answer})
