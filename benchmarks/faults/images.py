"""Decode damaged images: each must give pixels or an OSError with a reason, soon, and never pixels that were not read.

    python -m benchmarks.faults.images --count 10000 --seed 0

Changes PNG, JPEG, WebP, TIFF and GIF files at random: bits, blocks, lengths and sizes, the end of the file. Half of the
changed PNG files get correct checksums, so that the change reaches the decoder. The pictures contain neither black nor
medium gray, with which decoders fill what they could not read: an edge of this color means that pixels are missing.
Other changes only damage metadata, which must not change pixels, except that they may be turned.

Prints the number of images by outcome, and the first bytes of each image that was handled wrongly. A crash ends the
command: `--seed` repeats it. Exit code 1 if an image was handled wrongly.
"""

import io
import random
import struct
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter, PngImagePlugin

from benchmarks.record import new_parser, write_json
from vgg_ddp.data.decode import decode_image
from vgg_ddp.data.image_files import PNG_START, jpeg_segments, png_chunks

Pixels = npt.NDArray[np.uint8]
LIMIT_SECONDS = 5
# Larger images take seconds, and are a kind of their own.
MAX_PIXELS = 1_000_000
EDGE_VALUES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
# What decoders leave where they had no data: libjpeg gray, others black.
GRAYS, BLACK = tuple((value,) * 3 for value in (127, 128, 129)), ((0, 0, 0),)


@dataclass(frozen=True)
class Sample:
    """An intact image.

    Attributes:
        kind: the format.
        metadata: start and end of the content of each part of the file that holds only metadata.
        fill_colors: what decoders leave where they have no data, and damaged data do not give.
    """

    kind: str
    encoded: bytes
    pixels: Pixels
    metadata: tuple[tuple[int, int], ...]
    fill_colors: tuple[tuple[int, ...], ...]


def picture(mode: str, size: tuple[int, int] = (61, 45)) -> Image.Image:
    """A smooth picture with all values between 150 and 230, and its orientation tag."""
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(noise).filter(ImageFilter.GaussianBlur(2))).astype(np.float64)
    scaled = 150 + (smooth - smooth.min()) * 80 / (smooth.max() - smooth.min())
    image = Image.fromarray(scaled.astype(np.uint8))
    return image.quantize(64) if mode == "P" else image.convert(mode)


def intact_samples() -> list[Sample]:
    """Images of every format in several variants."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x011A] = 1, "maker", 72.0
    exif.get_ifd(0x8769)[0x9003] = "2026:01:01 00:00:00"
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "text" * 20, zip=True)
    text.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="1"/>')
    icc = b"profile" * 9
    deep = Image.fromarray(np.asarray(picture("L")).astype(np.uint16) * 257)
    variants: dict[str, list[tuple[Image.Image, dict[str, object]]]] = {
        "PNG": [
            *((picture(mode), {"exif": exif, "pnginfo": text, "icc_profile": icc}) for mode in ("RGB", "L", "P")),
            (picture("RGBA"), {}),
            (deep, {}),
            (picture("RGB"), {"save_all": True, "append_images": [picture("RGB").rotate(9)]}),
        ],
        "JPEG": [
            (picture("RGB"), {"exif": exif, "icc_profile": icc, "xmp": b'<x tiff:Orientation="1"/>'}),
            (picture("RGB"), {"progressive": True, "exif": exif}),
            (picture("L"), {"restart_marker_rows": 1}),
            (picture("CMYK"), {"comment": b"comment"}),
        ],
        "MPO": [(picture("RGB"), {"save_all": True, "append_images": [picture("RGB")], "exif": exif})],
        "WEBP": [
            (picture("RGB"), {"exif": exif, "icc_profile": icc}),
            (picture("RGBA"), {"lossless": True, "xmp": b'<x tiff:Orientation="1"/>'}),
        ],
        "TIFF": [
            *((picture("RGB"), {"compression": name}) for name in (None, "tiff_lzw", "tiff_adobe_deflate", "packbits")),
            (picture("RGB"), {"compression": "jpeg"}),
            (picture("P"), {"exif": exif}),
            (deep, {"strip_size": 500}),
            (picture("LA"), {"strip_size": 500}),
        ],
        "GIF": [(picture("P"), {})],
    }
    return [make_sample(kind, image, options) for kind, images in variants.items() for image, options in images]


def make_sample(kind: str, image: Image.Image, options: dict[str, object]) -> Sample:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    encoded = stream.getvalue()
    fill_colors = GRAYS if kind in ("JPEG", "MPO") or options.get("compression") == "jpeg" else BLACK
    if kind in ("TIFF", "GIF") and image.mode == "P":
        # Damaged palettes are often black.
        fill_colors = ()
    pixels = decode_image(encoded, None, any_format=True)
    return Sample(kind, encoded, pixels, tuple(metadata_of(encoded)), fill_colors)


def metadata_of(encoded: bytes) -> list[tuple[int, int]]:
    """Start and end of the content of each part that holds nothing but metadata."""
    if encoded.startswith(PNG_START):
        parts, start = [], len(PNG_START)
        for name, chunk in png_chunks(encoded):
            if name in (b"eXIf", b"iTXt", b"zTXt", b"iCCP"):
                # With the checksum.
                parts.append((start + 8, start + len(chunk)))
            start += len(chunk)
        return parts
    if encoded.startswith(b"\xff\xd8"):
        return [(start + 4, end) for marker, start, end in jpeg_segments(encoded) if marker in (0xE1, 0xE2, 0xFE)]
    if encoded.startswith(b"RIFF"):
        places = [encoded.rfind(name) for name in (b"EXIF", b"XMP ")]
        return [(at + 8, at + 8 + struct.unpack_from("<I", encoded, at + 4)[0]) for at in places if at > 0]
    return []


def flip_bits(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def cut(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def cut_and_end(data: bytearray, rng: random.Random) -> None:
    """Keep the last bytes, which may mark the end of the image."""
    end = data[-rng.choice((1, 2, 12)) :]
    cut(data, rng)
    data += end


def splice(data: bytearray, rng: random.Random) -> None:
    """Replace, insert, or delete a block."""
    source, target = rng.randrange(len(data)), rng.randrange(len(data))
    length = rng.choice((1, 4, 16, 64, 256))
    data[target : target + rng.choice((0, length))] = data[source : source + rng.choice((0, length))]


def edit_number(data: bytearray, rng: random.Random) -> None:
    """Change a number, often in the first bytes, where sizes are."""
    size, order = rng.choice((1, 2, 4)), rng.choice(("<", ">"))
    at = rng.randrange(max(1, min(len(data), rng.choice((64, 256, len(data)))) - size))
    kind = order + {1: "B", 2: "H", 4: "I"}[size]
    if at + size <= len(data):
        (old,) = struct.unpack_from(kind, data, at)
        value = rng.choice((*EDGE_VALUES, old + 1, old - 1, old * 2, old // 2))
        struct.pack_into(kind, data, at, value % 256**size)


CHANGES: tuple[Callable[[bytearray, random.Random], None], ...] = (flip_bits, cut, cut_and_end, splice, edit_number)


def with_checksums(encoded: bytes) -> bytes:
    """A PNG file whose chunks have correct checksums."""
    chunks = (chunk for _, chunk in png_chunks(encoded))
    return encoded[: len(PNG_START)] + b"".join(
        chunk[:-4] + struct.pack(">I", zlib.crc32(chunk[4:-4])) if len(chunk) >= 12 else chunk for chunk in chunks
    )


def damaged(sample: Sample, rng: random.Random) -> bytes:
    data = bytearray(sample.encoded)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if data:
            rng.choice(CHANGES)(data, rng)
    encoded = bytes(data)
    return with_checksums(encoded) if encoded.startswith(PNG_START) and rng.random() < 0.5 else encoded


def with_damaged_metadata(sample: Sample, rng: random.Random) -> bytes:
    start, end = rng.choice(sample.metadata)
    part = bytearray(sample.encoded[start:end])
    for _ in range(rng.choice((1, 2, 8))):
        rng.choice((flip_bits, edit_number))(part, rng)
    encoded = sample.encoded[:start] + bytes(part) + sample.encoded[end:]
    return with_checksums(encoded) if encoded.startswith(PNG_START) and rng.random() < 0.5 else encoded


def has_unread_edge(pixels: Pixels, fill_colors: tuple[tuple[int, ...], ...]) -> bool:
    """Whether a whole edge has a color that only missing pixels have; where all are black or white, they may not be."""
    edges = (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1])
    is_bilevel = np.isin(pixels, (0, 255)).all() and pixels.any()
    return not is_bilevel and any((edge == color).all() for edge in edges for color in fill_colors)


def problem_of(encoded: bytes, sample: Sample, only_metadata: bool) -> tuple[str, str]:
    """Decode a damaged sample; return the outcome and, if it was handled wrongly, why.

    If only its metadata are damaged, it must be decoded to its pixels, in any orientation.
    """
    started, pixels = time.monotonic(), None
    try:
        pixels = decode_image(encoded, None, any_format=True, max_pixels=MAX_PIXELS)
        outcome, problem = "decoded", ""
    except OSError as error:
        outcome, problem = "refused", "" if str(error) else "no reason"
    # Whatever else is raised is what this looks for.
    except Exception as error:
        outcome, problem = "failed", f"{type(error).__name__}: {error}"
    if time.monotonic() - started > LIMIT_SECONDS:
        problem = problem or "too slow"
    if only_metadata and not problem:
        views = [np.rot90(view, turns) for view in (sample.pixels, sample.pixels[:, ::-1]) for turns in range(4)]
        if pixels is None or not any(np.array_equal(pixels, view) for view in views):
            problem = "damaged metadata counted"
    elif pixels is not None and has_unread_edge(pixels, sample.fill_colors):
        problem = "pixels that were not read"
    return outcome, problem


def decode_damaged_images(count: int, seed: int) -> tuple[Counter[str], list[tuple[str, str, bytes]]]:
    """Decode damaged images; return their number by outcome, and format, problem and file of the wrong ones."""
    rng, samples = random.Random(seed), intact_samples()
    tagged = [sample for sample in samples if sample.metadata]
    outcomes, wrong = Counter[str](), []
    for _ in range(count):
        if rng.random() < 0.2:
            sample = rng.choice(tagged)
            encoded = with_damaged_metadata(sample, rng)
            outcome, problem = problem_of(encoded, sample, only_metadata=True)
        else:
            sample = rng.choice(samples)
            encoded = damaged(sample, rng)
            outcome, problem = problem_of(encoded, sample, only_metadata=False)
        outcomes[f"{sample.kind} {outcome}"] += 1
        if problem:
            wrong.append((sample.kind, problem, encoded))
    return outcomes, wrong


def main() -> int:
    parser = new_parser(__doc__)
    parser.add_argument("--count", type=int, default=10_000, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    options = parser.parse_args()
    started = time.monotonic()
    outcomes, wrong = decode_damaged_images(options.count, options.seed)
    for outcome, number in sorted(outcomes.items()):
        print(f"{outcome:<14} {number:7,}")
    for kind, problem, encoded in wrong:
        print(f"wrong: {kind}: {problem}: {encoded[:40]!r}")
    print(f"{len(wrong)} of {options.count:,} handled wrongly, {time.monotonic() - started:.0f} s")
    write_json(options.json, {"count": options.count, "seed": options.seed, "outcomes": outcomes, "wrong": len(wrong)})
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
