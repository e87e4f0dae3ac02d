"""Single encoded images: decode them, resize them, make PNG of other formats. torch is not needed here."""

import io
import struct
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from PIL.Image import Image

# What Parquet files hold, and services accept.
FORMATS = ("PNG", "JPEG")
# What Pillow raises for damage, but for OSError.
DAMAGE = (ValueError, TypeError, SyntaxError, ArithmeticError, LookupError, NotImplementedError, struct.error)


def decode_image(encoded: bytes, image_size: int) -> npt.NDArray[np.uint8]:
    """Decode PNG or JPEG bytes to uint8 (image_size, image_size, 3).

    Raises:
        OSError: if the bytes are no such image, or a damaged one.
    """
    return np.asarray(_decode(encoded, image_size, FORMATS)[0])


def as_png_or_jpeg(encoded: bytes, image_size: int | None) -> bytes:
    """The bytes themselves if they are a PNG or JPEG image; of other formats the first frame as PNG.

    With a size, always a PNG of this height and width.

    Raises:
        OSError: if the bytes are no image, or a damaged one.
    """
    pixels, kind = _decode(encoded, image_size, None)
    if image_size is None and kind in FORMATS:
        return encoded
    stream = io.BytesIO()
    pixels.save(stream, "PNG")
    return stream.getvalue()


def _decode(encoded: bytes, image_size: int | None, formats: tuple[str, ...] | None) -> "tuple[Image, str | None]":
    """An RGB image, and its format."""
    from PIL import Image, UnidentifiedImageError

    if not encoded:
        raise OSError("no bytes")
    try:
        with Image.open(io.BytesIO(encoded), formats=formats) as image:
            if image.mode.startswith("I"):
                # 16 bits a pixel: Pillow would cut all but the darkest off at white.
                pixels = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
            else:
                pixels = image.convert("RGB")
            if image_size is not None and pixels.size != (image_size, image_size):
                pixels = pixels.resize((image_size, image_size), Image.Resampling.BILINEAR)
            return pixels, image.format
    except UnidentifiedImageError as error:
        raise OSError(f"not {' or '.join(formats) if formats else 'an image of a known format'}") from error
    except (*DAMAGE, Image.DecompressionBombError) as error:
        raise OSError(str(error) or type(error).__name__) from error
