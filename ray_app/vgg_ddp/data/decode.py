"""Decode single images to upright RGB pixels: the only place where image files become pixels.

Serving containers get a copy of this file and of the two that it imports; they need only numpy and Pillow.
"""

import io
import struct
import warnings
import zlib
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from vgg_ddp.data.image_files import lacks_pixels, lacks_strips, png_bits, without_metadata
from vgg_ddp.data.opaque import opaque_rgb, refuse_unsupported_pixels

if TYPE_CHECKING:
    from PIL.Image import Image, Transpose
    from PIL.ImageFile import ImageFile

# The formats that Parquet files may contain and that endpoints accept. Pillow opens MPO, the photos of some phones with
# a preview behind them, as JPEG.
FORMATS = ("PNG", "JPEG")
# Increase it when the pixels of any image change, so that prepare.py converts images again.
DECODER_VERSION = 2
STORED_UNCHANGED = ("PNG", "JPEG", "MPO")
# Exceptions that Pillow raises for corrupt images, besides OSError.
CORRUPT_IMAGE_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)
# Editors store histories and workflows of several megabytes as text in PNG files; Pillow's limit is 1 MiB.
MAX_TEXT_BYTES = 64 * 2**20
# Where Pillow puts EXIF and XMP.
METADATA = frozenset({"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"})
ORIENTATION = 0x0112
# EXIF, GPS, interoperability: parts of a TIFF file's metadata that only need to be intact if they are parsed.
METADATA_PARTS = (0x8769, 0x8825, 0xA005)
# Common files that Pillow cannot read, by their first bytes; in HEIC files, these follow a length of 4 bytes.
UNREADABLE = {b"<svg": "SVG", b"<?xml": "XML (SVG?)", b"%PDF": "PDF"}
HEIC = (b"ftypheic", b"ftypheix", b"ftyphevc", b"ftypmif1", b"ftypmsf1")
# First bytes of formats of which Pillow reads only some kinds, or which may be damaged.
STARTS = {b"\x89PNG": "PNG", b"\xff\xd8": "JPEG", b"II*\0": "TIFF", b"MM\0*": "TIFF", b"GIF8": "GIF"}


def decode_image(
    encoded: bytes, image_size: int | None, any_format: bool = False, max_pixels: int | None = None
) -> npt.NDArray[np.uint8]:
    """Decode an image to upright uint8 (image_size, image_size, 3); (H, W, 3) if image_size is None.

    Args:
        encoded: PNG or JPEG.
        image_size: height and width to resize to.
        any_format: accept every format that Pillow reads. Only the first frame is used.
        max_pixels: refuse larger images; by default, only those over Pillow's limit.

    Raises:
        OSError: if the image is corrupt, truncated, too large, or of another kind.
    """
    pixels, _ = _decode(encoded, image_size, None if any_format else FORMATS, max_pixels)
    return np.asarray(pixels)


def as_png_or_jpeg(encoded: bytes, image_size: int | None) -> bytes:
    """Return PNG and JPEG bytes unchanged, and the first frame of any other format as an upright PNG.

    If image_size is given, always return an upright PNG of this height and width.

    Raises:
        OSError: if the image is corrupt, truncated, too large, or not supported.
    """
    pixels, kind = _decode(encoded, image_size, None, None)
    if image_size is None and kind in STORED_UNCHANGED:
        return encoded
    stream = io.BytesIO()
    pixels.save(stream, "PNG")
    return stream.getvalue()


def _decode(
    encoded: bytes, image_size: int | None, formats: tuple[str, ...] | None, max_pixels: int | None
) -> "tuple[Image, str | None]":
    """Decode and resize; return the RGB image and its format."""
    from PIL.Image import MAX_IMAGE_PIXELS, DecompressionBombError, Resampling

    _set_up_pillow()
    try:
        pixels, kind = _decode_despite_metadata(encoded, formats, max_pixels)
        if image_size is not None and pixels.size != (image_size, image_size):
            pixels = pixels.resize((image_size, image_size), Resampling.BILINEAR)
        return pixels, kind
    except DecompressionBombError as error:
        raise OSError(f"too large: more than {2 * (MAX_IMAGE_PIXELS or 0)} pixels in total") from error
    except CORRUPT_IMAGE_ERRORS as error:
        raise OSError(" ".join(str(error).split()) or type(error).__name__) from error


@cache
def _set_up_pillow() -> None:
    from PIL import PngImagePlugin

    PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = MAX_TEXT_BYTES
    # Pillow warns about damaged metadata, which counts as none, and about large images, which are either accepted or
    # refused. Not with warnings.catch_warnings, because several threads decode at the same time.
    warnings.filterwarnings("ignore", module=r"PIL\.")


def _decode_despite_metadata(
    encoded: bytes, formats: tuple[str, ...] | None, max_pixels: int | None
) -> "tuple[Image, str | None]":
    """Decode; if that fails, decode what remains without metadata, which may be damaged."""
    try:
        return _upright_rgb(encoded, formats, max_pixels)
    except (OSError, *CORRUPT_IMAGE_ERRORS) as error:
        remaining = without_metadata(encoded)
        if remaining is None:
            raise
        try:
            return _upright_rgb(remaining, formats, max_pixels)
        except (OSError, *CORRUPT_IMAGE_ERRORS):
            raise error from None


def _upright_rgb(encoded: bytes, formats: tuple[str, ...] | None, max_pixels: int | None) -> "tuple[Image, str | None]":
    """The first frame, upright and opaque, and the format."""
    image = _open(encoded, formats)
    width, height = image.size
    if max_pixels and width * height > max_pixels:
        raise OSError(f"too large: {width} x {height} pixels, expected at most {max_pixels} in total")
    refuse_unsupported_pixels(image)
    if image.format == "TIFF":
        # Pillow turns TIFF images itself when it loads them, with the metadata that this call leaves.
        _orientation(image)
    if lacks_strips(image):
        raise OSError("image file is truncated")
    image.load()
    if lacks_pixels(encoded, image):
        raise OSError("image file is truncated")
    upright: Image = image
    # After loading, because metadata may follow the pixels.
    if not METADATA.isdisjoint(image.info):
        turn = _turns().get(_orientation(image))
        if turn is not None:
            upright = image.transpose(turn)
    return opaque_rgb(upright, png_bits(encoded) if image.format == "PNG" else 8), image.format


def _open(encoded: bytes, formats: tuple[str, ...] | None) -> "ImageFile":
    from PIL import Image, UnidentifiedImageError

    if not encoded:
        raise OSError("empty file")
    try:
        return Image.open(io.BytesIO(encoded), formats=formats)
    except UnidentifiedImageError as error:
        raise OSError(_why_unidentified(encoded, formats)) from error


def _why_unidentified(encoded: bytes, formats: tuple[str, ...] | None) -> str:
    kind = next((name for start, name in STARTS.items() if encoded.startswith(start)), None)
    if encoded[:4] == b"RIFF" and encoded[8:12] == b"WEBP":
        kind = "WebP"
    if kind and (formats is None or kind in formats):
        return f"a {kind} file that is damaged or of an unsupported kind"
    if formats:
        return f"not {' or '.join(formats)}"
    unreadable = next((name for start, name in UNREADABLE.items() if encoded.startswith(start)), None)
    if encoded[4:12] in HEIC:
        unreadable = "HEIC"
    return (
        f"{unreadable} is not supported: convert it to JPEG or PNG" if unreadable else "not an image in a known format"
    )


def _orientation(image: "ImageFile") -> object:
    """The value of the orientation tag in EXIF or XMP; 1, for upright, if it is missing or damaged."""
    try:
        exif = image.getexif()
        for part in METADATA_PARTS:
            exif.pop(part, None)
        return exif.get(ORIENTATION, 1)
    except (OSError, *CORRUPT_IMAGE_ERRORS):
        return 1


@cache
def _turns() -> "dict[object, Transpose]":
    """What makes an image with an orientation tag upright, as in PIL.ImageOps.exif_transpose."""
    from PIL.Image import Transpose

    return {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
