"""Unusual image files made in code, each with the pixels or the refusal that it must give.

The expected pixels are computed with numpy from the picture that a file shows, without Pillow.
"""

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, PngImagePlugin, features

from support.odd_files import (
    as_stored,
    encode,
    exif,
    jpeg_segment,
    jpeg_with_xmp,
    png,
    png_chunk,
    raw_png,
    raw_profile,
    tiff,
    xmp,
    xmp_text,
)

Pixels = npt.NDArray[np.uint8]
ROWS, COLUMNS = np.mgrid[0:30, 0:44]
# Red increases to the right and green downwards, so that every other orientation looks different.
PICTURE: Pixels = np.stack([COLUMNS * 5 + 20, ROWS * 7 + 20, 220 - COLUMNS * 2 - ROWS * 3], axis=2).astype(np.uint8)
GRAY: Pixels = PICTURE[..., 1] // 2 + PICTURE[..., 0] // 4
ALPHA: Pixels = (COLUMNS * 255 // 43).astype(np.uint8)
# Of a format that loses details.
LOSSY = 12
UPRIGHT = "upright"
ON_WHITE = "transparency becomes white"


@dataclass(frozen=True)
class OddImage:
    """Files that must all give the same result.

    Attributes:
        expected: upright pixels (H, W, 3), or words of the refusal.
        outcome: the result as the documentation states it.
        tolerance: largest difference from the expected pixels.
    """

    name: str
    files: tuple[bytes, ...]
    expected: Pixels | str
    outcome: str
    tolerance: int = 0


def shown(
    name: str, files: bytes | list[bytes], pixels: Pixels = PICTURE, outcome: str = "decoded", tolerance: int = 0
) -> OddImage:
    expected = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)
    return OddImage(name, tuple([files] if isinstance(files, bytes) else files), expected, outcome, tolerance)


def refused(name: str, file: bytes, words: str) -> OddImage:
    return OddImage(name, (file,), words, f"refused: {words}")


def on_white(pixels: Pixels, alpha: Pixels) -> Pixels:
    """Colors (H, W, 3) or gray (H, W) above white."""
    weight = (alpha / 255)[(...,) + (None,) * (pixels.ndim - 2)]
    return np.rint(pixels * weight + 255 * (1 - weight)).astype(np.uint8)


def oriented(name: str, file: Callable[[npt.NDArray[Any], int], bytes], shape: Any = PICTURE, **more: Any) -> OddImage:
    """A file for each orientation tag; `file` encodes the pixels as stored with the tag."""
    pixels = more.pop("pixels", shape)
    # No file at all if this version of Pillow cannot write it.
    tags = range(1, 9) if more.pop("is_available", True) else ()
    files = [file(as_stored(shape, tag), tag) for tag in tags]
    return shown(f"{name}, orientation 1 to 8", files, pixels, UPRIGHT, **more)


def with_exif(kind: str, mode: str | None = None, **options: Any) -> Callable[[npt.NDArray[Any], int], bytes]:
    def file(pixels: npt.NDArray[Any], tag: int) -> bytes:
        image = Image.fromarray(pixels)
        return encode(image.convert(mode) if mode else image, kind, exif=exif(tag), **options)

    return file


def orientations() -> Iterator[OddImage]:
    rgba, la = np.dstack([PICTURE, ALPHA]), np.dstack([GRAY, ALPHA])
    deep, bilevel = GRAY.astype(np.uint16) * 256 + 99, GRAY > 90
    yield oriented("JPEG, EXIF", with_exif("JPEG", quality=95), tolerance=LOSSY)
    yield oriented("JPEG, gray, EXIF", with_exif("JPEG", quality=95), GRAY, tolerance=LOSSY)
    yield oriented("JPEG, CMYK, EXIF", with_exif("JPEG", "CMYK", quality=95), tolerance=LOSSY)
    for name, is_element in (("attribute", False), ("element", True)):
        yield oriented(f"JPEG, XMP {name}", partial(jpeg_with_xmp, is_element=is_element), tolerance=LOSSY)
    frames = {"save_all": True, "append_images": [Image.new("RGB", (8, 8))]}
    yield oriented("MPO (JPEG with a preview), EXIF", with_exif("MPO", quality=95, **frames), tolerance=LOSSY)
    yield oriented("PNG, EXIF", with_exif("PNG"))
    yield oriented(
        "PNG, EXIF after the pixels", lambda p, tag: png(p, after=png_chunk(b"eXIf", exif(tag).tobytes()[6:]))
    )
    yield oriented("PNG, EXIF as ImageMagick's text", lambda p, tag: png(p, before=raw_profile(tag)))
    yield oriented("PNG, XMP", lambda p, tag: encode(p, "PNG", pnginfo=xmp_text(tag)))
    yield oriented("PNG, gray, EXIF", with_exif("PNG"), GRAY)
    yield oriented("PNG, gray, 16 bits, EXIF", with_exif("PNG"), deep, pixels=GRAY)
    yield oriented("PNG, black and white, EXIF", with_exif("PNG"), bilevel, pixels=bilevel * np.uint8(255))
    yield oriented("PNG, RGB with alpha, EXIF", with_exif("PNG"), rgba, pixels=on_white(PICTURE, ALPHA), tolerance=1)
    yield oriented("PNG, gray with alpha, EXIF", with_exif("PNG"), la, pixels=on_white(GRAY, ALPHA), tolerance=1)
    yield oriented("WebP, EXIF", with_exif("WEBP", lossless=True))
    yield oriented("WebP, XMP", lambda p, tag: encode(p, "WEBP", lossless=True, xmp=xmp(tag)))
    for name in ("raw", "tiff_lzw", "tiff_adobe_deflate"):
        yield oriented(f"TIFF, {name.removeprefix('tiff_').replace('adobe_', '')}", with_exif("TIFF", compression=name))
    yield oriented("TIFF, gray, 16 bits", with_exif("TIFF"), deep, pixels=GRAY)
    yield oriented("TIFF, CMYK", with_exif("TIFF", "CMYK"), tolerance=1)
    has_avif = features.check("avif")
    avif = with_exif("AVIF", quality=95) if has_avif else lambda *_: b""
    yield oriented("AVIF (from Pillow 11.3)", avif, tolerance=LOSSY, is_available=has_avif)


def damaged_metadata() -> Iterator[OddImage]:
    plain, photo = png(PICTURE), partial(encode, PICTURE, "JPEG", quality=95)
    intact, lossy = "damaged metadata is ignored", partial(shown, tolerance=LOSSY)
    for tag in (0, 9):
        yield lossy(f"JPEG, EXIF orientation {tag}", photo(exif=exif(tag).tobytes()), outcome=intact)
    yield lossy("JPEG, EXIF that is garbage", photo(exif=b"Exif\0\0garbage"), outcome=intact)
    yield lossy("JPEG, EXIF that ends early", photo(exif=exif(6).tobytes()[:18]), outcome=intact)
    yield lossy("JPEG, XMP that is not XML", photo(xmp=b"<x \xa8 Orientation=>"), outcome=intact)
    broken_mpf = jpeg_segment(0xE2, b"MPF\0MM\0*\0\0\0\x08\xff\xff" + bytes(40))
    yield lossy(
        "JPEG, broken list of previews", photo().replace(b"\xff\xdb", broken_mpf + b"\xff\xdb", 1), outcome=intact
    )
    yield shown(
        "PNG, EXIF with a wrong checksum", png(PICTURE, before=png_chunk(b"eXIf", b"II*\0", b"0000")), outcome=intact
    )
    yield shown("PNG, broken color profile", png(PICTURE, before=png_chunk(b"iCCP", b"x\0\7garbage")), outcome=intact)
    yield shown(
        "PNG, text with a wrong checksum", png(PICTURE, before=png_chunk(b"tEXt", b"a\0b", b"0000")), outcome=intact
    )
    yield shown("PNG, broken animation", png(PICTURE, before=png_chunk(b"acTL", b"\0\0")), outcome=intact)
    yield shown("TIFF, EXIF beyond the end", tiff(GRAY, extra={0x8769: (4, [10**9])}), GRAY, intact)
    for is_zipped in (False, True):
        text = PngImagePlugin.PngInfo()
        text.add_text("workflow", "x" * 2 * 2**20, zip=is_zipped)
        name = f"PNG, text of 2 MiB{', compressed' * is_zipped}"
        yield shown(name, encode(PICTURE, "PNG", pnginfo=text))
    assert plain.endswith(b"IEND\xaeB`\x82")
    yield shown("PNG, trailing data", plain + b"garbage" * 99)
    yield lossy("JPEG, trailing data", photo() + bytes(999))


def transparency() -> Iterator[OddImage]:
    index = (PICTURE[..., 0] // 16).astype(np.uint8)
    palette = np.random.default_rng(0).integers(0, 256, (16, 3), dtype=np.uint8)
    alphas = np.arange(16, dtype=np.uint8) * 17
    yield shown("PNG, palette", png(index, palette), palette[index])
    half = png(index, palette, before=png_chunk(b"tRNS", alphas.tobytes()))
    yield shown("PNG, palette with alpha", half, on_white(palette[index], alphas[index]), ON_WHITE, 1)
    keyed = np.where((index == 3)[..., None], 255, palette[index]).astype(np.uint8)
    one = png(index, palette, before=png_chunk(b"tRNS", b"\xff\xff\xff\0"))
    yield shown("PNG, palette with a transparent color", one, keyed, ON_WHITE)
    gif = Image.fromarray(index, "P")
    gif.putpalette(palette.tobytes())
    yield shown("GIF, transparent color", encode(gif, "GIF", transparency=3), keyed, ON_WHITE)
    red, green, blue = (int(value) for value in PICTURE[9, 9])
    is_key = np.equal(PICTURE, PICTURE[9, 9]).all(axis=2)
    for bits in (8, 16):
        key = struct.pack(">3H", *(value * 256 ** (bits // 16) for value in (red, green, blue)))
        pixels = np.where(is_key[..., None], 255, PICTURE).astype(np.uint8)
        file = png(PICTURE.astype(f"u{bits // 8}") << (bits - 8), before=png_chunk(b"tRNS", key))
        yield shown(f"PNG, {bits} bits, transparent color", file, pixels, ON_WHITE)
    for bits in (1, 2, 4, 8, 16):
        small = (GRAY.astype(np.uint16) << 8) >> (16 - bits)
        file = raw_png(small, bits, before=png_chunk(b"tRNS", struct.pack(">H", small[9, 9])))
        scaled = small >> 8 if bits == 16 else small * (255 // (2**bits - 1))
        pixels = np.where(small == small[9, 9], 255, scaled).astype(np.uint8)
        yield shown(f"PNG, gray, {bits} bit{'s' * (bits > 1)}, transparent gray", file, pixels, ON_WHITE)
    rgba = np.dstack([PICTURE, ALPHA])
    for kind, options in (("WEBP", {"lossless": True, "exact": True}), ("TIFF", {}), ("TGA", {}), ("ICO", {})):
        sizes = {"sizes": [(44, 30)]} if kind == "ICO" else {}
        yield shown(
            f"{kind.replace('WEBP', 'WebP')}, RGB with alpha",
            encode(rgba, kind, **options, **sizes),
            on_white(*np.split(rgba, [3], 2)[:1], ALPHA),
            ON_WHITE,
            1,
        )


def depths() -> Iterator[OddImage]:
    deep, high = GRAY.astype(np.uint16) * 256 + 200, "upper 8 of 16 bits"
    twelve = deep >> 4
    yield shown("PNG, 12 bits in 16", encode(twelve, "PNG"), (twelve >> 8).astype(np.uint8), high)
    yield shown("PNG, RGB, 16 bits", png(PICTURE.astype(np.uint16) * 256 + 200), outcome=high)
    rgba = np.dstack([PICTURE, ALPHA])
    yield shown(
        "PNG, RGB with alpha, 16 bits", png(rgba.astype(np.uint16) * 257), on_white(PICTURE, ALPHA), ON_WHITE, 1
    )
    yield shown("TIFF, big-endian, 16 bits", tiff(deep, order=">"), GRAY, high)
    header = f"P5 {COLUMNS.shape[1]} {ROWS.shape[0]} 65535\n".encode()
    yield shown("PGM, 16 bits", header + deep.astype(">u2").tobytes(), GRAY, high)
    for name, kind in (("32-bit integers", "<i4"), ("signed 16-bit integers", "<i2")):
        yield refused(f"TIFF, {name}", tiff(GRAY.astype(kind)), "32-bit or signed integer pixels are not supported")
    yield refused("TIFF, 32-bit floats", tiff(GRAY.astype("<f4") / 255), "floating-point pixels are not supported")
    yield refused("TIFF, 64-bit floats", tiff(GRAY.astype("<f8")), "damaged or of an unsupported kind")
    yield shown(
        "TIFF, CIE LAB",
        encode(Image.new("LAB", (9, 9), (128, 128, 128)), "TIFF"),
        np.full((9, 9), 119, np.uint8),
        tolerance=1,
    )


def shapes_and_formats() -> Iterator[OddImage]:
    other, first = Image.fromarray(PICTURE[::-1].copy()), "first frame"
    frames = {"save_all": True, "append_images": [other]}
    yield shown("Animated GIF", encode(GRAY, "GIF", **frames), GRAY, first)
    yield shown("Animated WebP", encode(PICTURE, "WEBP", lossless=True, **frames), outcome=first)
    yield shown("Animated PNG", encode(PICTURE, "PNG", **frames), outcome=first)
    yield shown("TIFF, two pages", encode(PICTURE, "TIFF", **frames), outcome=first)
    yield shown("PNG, interlaced", png(PICTURE, is_interlaced=True))
    yield shown("JPEG, progressive", encode(PICTURE, "JPEG", quality=95, progressive=True), tolerance=LOSSY)
    for kind in ("BMP", "PPM", "TGA", "PCX"):
        yield shown(kind, encode(PICTURE, kind))
    yield shown("JPEG 2000", encode(PICTURE, "JPEG2000"))
    yield refused("JPEG 2000, truncated", encode(PICTURE, "JPEG2000")[:-200], "broken data stream")
    tall = np.repeat(np.arange(5000, dtype=np.uint32)[:, None] // 20, 3, axis=1).astype(np.uint8)[:, None]
    yield shown("PNG, 1 x 5000", encode(tall, "PNG"), tall)
    yield shown("PNG, 1 x 1", encode(tall[999:1000], "PNG"), tall[999:1000])
    yield refused("PNG of width 0", raw_png(np.zeros((8, 0), np.uint16), 8), "damaged or of an unsupported kind")


def incomplete() -> Iterator[OddImage]:
    photo, progressive = (encode(PICTURE, "JPEG", quality=95, progressive=flag) for flag in (False, True))
    middle, cut = len(photo) * 3 // 4, "image file is truncated"
    yield refused("JPEG, truncated", photo[:middle], cut)
    yield refused("JPEG, truncated, with an end marker", photo[:middle] + b"\xff\xd9", cut)
    yield refused("JPEG, truncated, filled with zeros", photo[:middle] + bytes(5000), cut)
    yield refused("JPEG without its end marker", photo[:-2], cut)
    yield refused("JPEG, progressive, truncated", progressive[:middle], cut)
    file = png(PICTURE)
    yield refused("PNG, truncated", file[: len(file) // 2], cut)
    yield refused("PNG, too few rows", png(PICTURE, height=60), cut)
    yield refused(
        "PNG, interlaced, too few rows", png(PICTURE, height=60, is_interlaced=True), "unrecognized data stream"
    )
    flipped = file[:-40] + bytes([file[-40] ^ 16]) + file[-39:]
    yield refused("PNG, one flipped bit", flipped, "broken data stream")
    yield refused("PNG without its palette", raw_png(GRAY, 8, color=3), "the palette is missing")
    for kind, reason in (("WEBP", "could not create decoder object"), ("GIF", cut), ("BMP", cut)):
        whole = encode(GRAY, kind)
        yield refused(f"{kind.replace('WEBP', 'WebP')}, truncated", whole[: len(whole) // 2], reason)
    yield refused("TIFF, truncated", tiff(GRAY)[:-200], cut)
    yield refused("TIFF, too few strips", tiff(GRAY, height=45), cut)


def no_images() -> Iterator[OddImage]:
    yield refused("Empty file", b"", "empty file")
    yield refused("Text", b"hello", "not an image in a known format")
    yield refused("SVG", b"<svg xmlns='http://www.w3.org/2000/svg' width='10' height='10'/>", "SVG is not supported")
    yield refused("HEIC", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99), "HEIC is not supported")
    yield refused("PDF", b"%PDF-1.7\n" + bytes(99), "PDF is not supported")
    size = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", size) + png_chunk(b"IDAT", zlib.compress(bytes(999)))
    yield refused("PNG, 60000 x 60000", bomb + png_chunk(b"IEND", b""), "too large: more than 178956970 pixels")


@cache
def odd_images() -> list[OddImage]:
    groups = (orientations, damaged_metadata, transparency, depths, shapes_and_formats, incomplete, no_images)
    return [image for group in groups for image in group()]


def outcome_table() -> str:
    """The table in docs/data.md."""
    rows = [f"| {image.name} | {image.outcome} |" for image in odd_images()]
    return "\n".join(["| image | outcome |", "| --- | --- |", *rows]) + "\n"


if __name__ == "__main__":
    print(outcome_table(), end="")
