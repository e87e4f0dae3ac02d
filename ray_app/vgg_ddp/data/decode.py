"""Decode, resize, and convert single images. Does not need torch."""

import io
import struct
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from PIL.Image import Image


# The formats that Parquet files may contain and that endpoints accept.
FORMATS = ("PNG", "JPEG")
# Exceptions that Pillow raises for corrupt images, besides OSError.
CORRUPT_IMAGE_ERRORS = (
    ValueError,
    TypeError,
    SyntaxError,
    ArithmeticError,
    LookupError,
    NotImplementedError,
    struct.error,
)


def decode_image(encoded: bytes, image_size: int) -> npt.NDArray[np.uint8]:
    """Decode PNG or JPEG bytes to uint8 (image_size, image_size, 3).

    Raises:
        OSError: if the bytes are neither PNG nor JPEG, or are corrupt.
    """
    return np.asarray(_decode(encoded, image_size, FORMATS)[0])


def as_png_or_jpeg(encoded: bytes, image_size: int | None) -> bytes:
    """Return PNG and JPEG bytes unchanged, and the first frame of any other format as PNG.

    If image_size is given, always return a PNG of this height and width.

    Raises:
        OSError: if the bytes are not an image, or are corrupt.
    """
    pixels, kind = _decode(encoded, image_size, None)
    if image_size is None and kind in FORMATS:
        return encoded
    stream = io.BytesIO()
    pixels.save(stream, "PNG")
    return stream.getvalue()


def _decode(encoded: bytes, image_size: int | None, formats: tuple[str, ...] | None) -> "tuple[Image, str | None]":
    """Decode and resize; return the RGB image and its format."""
    from PIL import Image, UnidentifiedImageError

    if not encoded:
        raise OSError("empty file")
    try:
        with Image.open(io.BytesIO(encoded), formats=formats) as image:
            if image.mode.startswith("I"):
                # 16 bits per pixel: Pillow would clip everything above 255 to white.
                pixels = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
            else:
                pixels = image.convert("RGB")
            if image_size is not None and pixels.size != (image_size, image_size):
                pixels = pixels.resize((image_size, image_size), Image.Resampling.BILINEAR)
            return pixels, image.format
    except UnidentifiedImageError as error:
        raise OSError(f"not {' or '.join(formats) if formats else 'an image in a known format'}") from error
    except (*CORRUPT_IMAGE_ERRORS, Image.DecompressionBombError) as error:
        raise OSError(str(error) or type(error).__name__) from error
