"""The structure of PNG, JPEG and TIFF files: what Pillow does not check, and what remains without metadata."""

import io
import re
import struct
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

PNG_START = b"\x89PNG\r\n\x1a\n"
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
# First column and row, and distances, of the passes of interlaced PNG files: https://www.w3.org/TR/png-3/#8Interlace
PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
JPEG_START, JPEG_END, SCAN_START = b"\xff\xd8", b"\xff\xd9", b"\xff\xda"
# APP0, APP1 (EXIF and XMP) and APP14 (how colors are stored); other segments from APP2 to APP15, and comments.
KEPT_APPLICATION_SEGMENTS = (0xE0, 0xE1, 0xEE)
COMMENT_SEGMENT = 0xFE
# The end of a scan's data: any marker, or any but a restart. Zero after FF is data, and FF may repeat.
END, END_WITH_RESTARTS = re.compile(rb"\xff+[^\x00\xff]"), re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]")
RESTART_INTERVAL = 0xDD
# How libjpeg fills what it has no data for: gray, differently rounded.
LIBJPEG_FILL = (127, 128)
# Data of no meaning, for a scan without and with restart markers.
OTHER_DATA = bytes(range(1, 255)) + b"".join(bytes((0xFF, 0xD0 + i, *range(1, 255))) for i in range(8))
# Tags of TIFF files.
STRIP_OFFSETS, STRIP_LENGTHS, TILE_OFFSETS, TILE_LENGTHS, JPEG_TABLES = 273, 279, 324, 325, 347
PLANAR_CONFIGURATION, PLANES_APART = 284, 2


def png_chunks(encoded: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Name and bytes of each chunk: length, name, data, and checksum. The last one may be incomplete."""
    position = len(PNG_START)
    while position + 8 <= len(encoded):
        end = position + 12 + int.from_bytes(encoded[position : position + 4], "big")
        yield encoded[position + 4 : position + 8], encoded[position:end]
        position = end


def png_bits(encoded: bytes) -> int:
    """Bits per channel of a PNG file."""
    return encoded[24]


def jpeg_segments(encoded: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start, and end of each segment before the first scan."""
    start = len(JPEG_START)
    while start + 4 <= len(encoded):
        marker = encoded[start + 1]
        if encoded[start] != 0xFF or marker in (SCAN_START[1], 0xFF):
            return
        end = start + 2 + int.from_bytes(encoded[start + 2 : start + 4], "big")
        yield marker, start, end
        start = end


def start_of_scan(encoded: bytes) -> int:
    """Where the first scan of a JPEG file starts: after the segments, of which metadata may contain another image."""
    end = max((end for _, _, end in jpeg_segments(encoded)), default=len(JPEG_START))
    # Decoders skip bytes between segments.
    start = encoded.find(SCAN_START, end)
    return start if start >= 0 else len(encoded)


def without_metadata(encoded: bytes) -> bytes | None:
    """A PNG or JPEG file with only what its pixels and its orientation need; None if that is the whole file."""
    if encoded.startswith(PNG_START):
        kept = [chunk for name, chunk in png_chunks(encoded) if not _is_png_metadata(name, chunk)]
        remaining = PNG_START + b"".join(kept)
    elif encoded.startswith(JPEG_START):
        segments = list(jpeg_segments(encoded))
        kept = [encoded[start:end] for marker, start, end in segments if not _is_jpeg_metadata(marker)]
        remaining = JPEG_START + b"".join(kept) + encoded[segments[-1][2] if segments else len(JPEG_START) :]
    else:
        return None
    return remaining if len(remaining) < len(encoded) else None


def _is_png_metadata(name: bytes, chunk: bytes) -> bool:
    if name == b"eXIf":
        # Intact EXIF may contain the orientation.
        return zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:], "big")
    # A lowercase first letter means that an image can be decoded without a chunk.
    return name != b"tRNS" and name.isalpha() and name[:1].islower()


def _is_jpeg_metadata(marker: int) -> bool:
    return marker == COMMENT_SEGMENT or (0xE0 <= marker <= 0xEF and marker not in KEPT_APPLICATION_SEGMENTS)


def lacks_strips(image: "ImageFile") -> bool:
    """Whether an opened, but not yet loaded TIFF image has fewer strips or tiles than its size needs."""
    if image.format != "TIFF" or not image.tile:
        return False
    width, height = image.size
    layout = image.tag_v2.get(PLANAR_CONFIGURATION)  # type: ignore[attr-defined]
    planes = len(image.getbands()) if layout == PLANES_APART and image.tile[0][0] == "raw" else 1
    boxes = [tile[1] or (0, 0, width, height) for tile in image.tile]
    covered = sum((right - left) * (lower - upper) for left, upper, right, lower in boxes)
    return bool(covered < width * height * planes)


def lacks_pixels(encoded: bytes, image: "ImageFile") -> bool:
    """Whether the data of a loaded PNG, JPEG or TIFF image ends before its last pixel.

    Pillow leaves missing pixels black, libjpeg gray: unless the last pixel has this color, none are missing. If it has,
    JPEG data are decoded again with other data behind them, which changes only missing pixels.
    """
    if image.format in ("JPEG", "MPO"):
        if not encoded.endswith(JPEG_END) and encoded.find(JPEG_END, start_of_scan(encoded)) < 0:
            return True
        return _is_last_pixel(image, LIBJPEG_FILL) and _jpeg_data_end_early(encoded, image)
    if image.format == "PNG":
        return ("interlace" in image.info or _is_last_pixel(image, (0,))) and _png_data_end_early(encoded)
    if image.format == "TIFF" and image.info.get("compression") == "jpeg":
        return _is_last_pixel(image, LIBJPEG_FILL) and _jpeg_data_end_early(_jpeg_of_last_strip(encoded, image), image)
    return False


def _is_last_pixel(image: "ImageFile", fill: tuple[int, ...]) -> bool:
    last = image.getpixel((image.width - 1, image.height - 1))
    return all(value in fill for value in last) if isinstance(last, tuple) else last in fill


def _png_data_end_early(encoded: bytes) -> bool:
    width, height, bits, color, _, _, is_interlaced = struct.unpack_from(">IIBBBBB", encoded, 16)
    needed = 0
    for left, top, across, down in PASSES if is_interlaced else ((0, 0, 1, 1),):
        columns, rows = -((left - width) // across), -((top - height) // down)
        if columns > 0 and rows > 0:
            # Each row starts with a byte that names its filter.
            needed += rows * (1 + (columns * bits * CHANNELS[color] + 7) // 8)
    data: list[bytes] = []
    for name, chunk in png_chunks(encoded):
        if name == b"IDAT":
            data.append(chunk[8:-4])
        elif data:
            break
    return len(zlib.decompressobj().decompress(b"".join(data), needed)) < needed


def _jpeg_data_end_early(encoded: bytes, image: "ImageFile") -> bool:
    start = start_of_scan(encoded)
    end = (END_WITH_RESTARTS if _has_restarts(encoded, image) else END).search(encoded, start + 2)
    if end is None:
        return True
    # Alone, because the first one of several scans does not contain everything.
    first_scan = encoded[: end.start()]
    return not np.array_equal(_pixels(first_scan + JPEG_END), _pixels(first_scan + OTHER_DATA + JPEG_END))


def _has_restarts(encoded: bytes, image: "ImageFile") -> bool:
    blocks = -(image.width // -8) * -(image.height // -8)
    intervals = [
        encoded[start + 4 : end] for marker, start, end in jpeg_segments(encoded) if marker == RESTART_INTERVAL
    ]
    return any(0 < int.from_bytes(interval, "big") < blocks for interval in intervals)


def _jpeg_of_last_strip(encoded: bytes, image: "ImageFile") -> bytes:
    """The last strip or tile of a TIFF file that contains JPEG data, with the tables that it needs."""
    tags = image.tag_v2  # type: ignore[attr-defined]
    offset = (tags.get(STRIP_OFFSETS) or tags.get(TILE_OFFSETS))[-1]
    length = (tags.get(STRIP_LENGTHS) or tags.get(TILE_LENGTHS))[-1]
    strip, tables = encoded[offset : offset + length], tags.get(JPEG_TABLES, JPEG_START + JPEG_END)
    return bytes(tables.removesuffix(JPEG_END) + strip.removeprefix(JPEG_START))


def _pixels(encoded: bytes) -> npt.NDArray[np.uint8]:
    from PIL import Image

    with Image.open(io.BytesIO(encoded), formats=("JPEG",)) as image:
        return np.asarray(image)
