"""Write image files with odd contents or metadata, with Pillow and by hand."""

import io
import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, PngImagePlugin

Array = npt.NDArray[np.generic]
PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
# Field types 3 and 4 of TIFF files.
FIELDS = {3: "H", 4: "I"}


def png_chunk(name: bytes, data: bytes, checksum: bytes | None = None) -> bytes:
    return struct.pack(">I", len(data)) + name + data + (checksum or struct.pack(">I", zlib.crc32(name + data)))


def jpeg_segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def _rows(pixels: Array, bits: int, is_interlaced: bool) -> Iterator[bytes]:
    """The rows of a PNG file's passes, each after a byte for no filter."""
    for top, left, down, across in PASSES if is_interlaced else ((0, 0, 1, 1),):
        part = pixels[top::down, left::across]
        for row in part if part.size else ():
            if bits < 8:
                binary = np.unpackbits(row.astype(np.uint8)[:, None], axis=1)[:, 8 - bits :]
                yield b"\0" + np.packbits(binary.reshape(-1)).tobytes()
            else:
                yield b"\0" + row.astype(f">u{bits // 8}").tobytes()


def raw_png(
    pixels: Array,
    bits: int,
    color: int = 0,
    before: bytes = b"",
    after: bytes = b"",
    height: int | None = None,
    is_interlaced: bool = False,
) -> bytes:
    """A PNG file with chunks before and after its pixels, and possibly a height that is not theirs."""
    size = struct.pack(">IIBBBBB", pixels.shape[1], height or pixels.shape[0], bits, color, 0, 0, is_interlaced)
    data = zlib.compress(b"".join(_rows(pixels, bits, is_interlaced)))
    chunks = png_chunk(b"IHDR", size) + before + png_chunk(b"IDAT", data) + after + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def png(
    pixels: Array,
    palette: Array | None = None,
    before: bytes = b"",
    after: bytes = b"",
    height: int | None = None,
    is_interlaced: bool = False,
) -> bytes:
    """A PNG file of gray, indexed, RGB or RGBA pixels with 8 or 16 bits."""
    color = 3 if palette is not None else {1: 0, 3: 2, 4: 6}[pixels.shape[2] if pixels.ndim == 3 else 1]
    colors = b"" if palette is None else png_chunk(b"PLTE", palette.tobytes())
    return raw_png(pixels, pixels.dtype.itemsize * 8, color, colors + before, after, height, is_interlaced)


def tiff(
    pixels: Array,
    order: str = "<",
    height: int | None = None,
    extra: Mapping[int, tuple[int, list[int]]] | None = None,
) -> bytes:
    """An uncompressed gray TIFF file: tags, then strips of 10 rows; possibly with a height that is not theirs."""
    rows, columns = pixels.shape
    strips = [pixels[top : top + 10].astype(pixels.dtype.newbyteorder(order)).tobytes() for top in range(0, rows, 10)]
    kind = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    tags: dict[int, tuple[int, list[int]]] = {
        **{256: (4, [columns]), 257: (4, [height or rows]), 258: (3, [pixels.dtype.itemsize * 8]), 259: (3, [1])},
        **{262: (3, [1]), 273: (4, [0] * len(strips)), 277: (3, [1]), 278: (4, [10])},
        **{279: (4, [len(strip) for strip in strips]), 339: (3, [kind])},
        **(extra or {}),
    }
    end_of_tags = 8 + 2 + 12 * len(tags) + 4
    first_strip = end_of_tags + sum(len(values) * 4 for _, values in tags.values() if len(values) > 1)
    tags[273] = (4, [first_strip + sum(map(len, strips[:number])) for number in range(len(strips))])
    entries, arrays = b"", b""
    for tag, (field, values) in sorted(tags.items()):
        content = struct.pack(f"{order}{len(values)}{FIELDS[field]}", *values)
        if len(content) > 4:
            arrays += content
            content = struct.pack(f"{order}I", end_of_tags + len(arrays) - len(content))
        entries += struct.pack(f"{order}HHI", tag, field, len(values)) + content.ljust(4, b"\0")
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    return start + struct.pack(f"{order}H", len(tags)) + entries + bytes(4) + arrays + b"".join(strips)


def encode(pixels: npt.NDArray[Any] | Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(stream, kind, **options)
    return stream.getvalue()


def as_stored(pixels: npt.NDArray[Any], tag: int) -> npt.NDArray[Any]:
    """Pixels that an orientation tag makes upright: https://www.cipa.jp/std/documents/e/DC-008-2012_E.pdf, 4.6.4."""
    stored = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.swapaxes(0, 1),
        6: np.rot90(pixels),
        7: pixels[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(pixels, -1),
    }[tag]
    return np.ascontiguousarray(stored)


def exif(tag: int) -> Image.Exif:
    data = Image.Exif()
    data[0x0112] = tag
    return data


def xmp(tag: int, is_element: bool = False) -> bytes:
    text = f"<tiff:Orientation>{tag}</tiff:Orientation>" if is_element else f'<rdf tiff:Orientation="{tag}"/>'
    return f"<x:xmpmeta>{text}</x:xmpmeta>".encode()


def xmp_text(tag: int) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", xmp(tag).decode())
    return info


def jpeg_with_xmp(pixels: npt.NDArray[Any], tag: int, is_element: bool) -> bytes:
    return encode(pixels, "JPEG", quality=95, xmp=xmp(tag, is_element))


def raw_profile(tag: int) -> bytes:
    """EXIF as ImageMagick writes it to PNG files."""
    data = b"Exif\0\0" + exif(tag).tobytes()
    return png_chunk(b"tEXt", f"Raw profile type exif\0\nexif\n{len(data):8}\n{data.hex()}\n".encode())
