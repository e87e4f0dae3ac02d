"""Convert loaded images of every mode to opaque RGB: deep pixels to 8 bits, transparency to white."""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from PIL.Image import Image

# Also mode I in these formats, which have no more than 16 bits.
SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N", "I")
SIXTEEN_BIT_FORMATS = ("PNG", "PPM")
UNSUPPORTED = {
    "I": "32-bit or signed integer pixels are not supported: convert the image to 8 or 16 bits per channel",
    "F": "floating-point pixels are not supported: convert the image to 8 or 16 bits per channel",
}


def refuse_unsupported_pixels(image: "Image") -> None:
    """Check that an opened image has pixels whose colors are known.

    Raises:
        OSError: with the reason.
    """
    if image.mode == "P" and image.format == "PNG" and image.palette is None:
        raise OSError("the palette is missing")
    if image.mode == "F" or (image.mode == "I" and image.format not in SIXTEEN_BIT_FORMATS):
        raise OSError(UNSUPPORTED[image.mode])


def opaque_rgb(image: "Image", bits: int) -> "Image":
    """RGB without metadata; what is transparent becomes white.

    `bits` is the depth of a channel in the file, in which transparent colors are given.
    """
    from PIL import Image

    key = image.info.get("transparency")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or (image.mode == "P" and _has_alpha(image)):
        layer = image.convert("RGBA")
        rgb = Image.new("RGB", image.size, "white")
        rgb.paste(layer, mask=layer.getchannel("A"))
    elif image.mode in SIXTEEN_BITS:
        values = np.asarray(image)
        gray = (values >> 8).astype(np.uint8)
        if isinstance(key, int):
            gray[values == key] = 255
        rgb = Image.fromarray(gray).convert("RGB")
    else:
        rgb = image if image.mode == "RGB" else image.convert("RGB")
        if key is not None:
            rgb = _white_where(rgb, _equals(rgb, key, bits))
    # The next reader must not apply the metadata a second time.
    rgb.info = {}
    return rgb


def _has_alpha(image: "Image") -> bool:
    palette = image.palette
    return "transparency" in image.info or (palette is not None and palette.mode.endswith("A"))


def _equals(rgb: "Image", key: object, bits: int) -> npt.NDArray[np.bool_]:
    """Where pixels have the transparent color of a PNG or GIF file: bool (H, W).

    Pillow gives the color as in the file, but scales pixels to 8 bits. Of 16 bits per channel, it keeps only the upper
    ones, so the lower ones cannot be compared.
    """
    highest = 2 ** min(bits, 8) - 1
    channels = [
        ((channel >> max(bits - 8, 0)) & highest) * (255 // highest)
        for channel in (key if isinstance(key, tuple) else (key,))
        if isinstance(channel, int)
    ]
    if len(channels) not in (1, 3):
        return np.zeros(rgb.size[::-1], bool)
    return (np.asarray(rgb) == channels).all(axis=2)  # type: ignore[no-any-return]


def _white_where(rgb: "Image", mask: npt.NDArray[np.bool_]) -> "Image":
    from PIL import Image

    pixels = np.array(rgb)
    pixels[mask] = 255
    return Image.fromarray(pixels)
