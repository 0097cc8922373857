"""From the bytes of a photo to pixels: one function for training, audit, evaluation and serving."""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from schemas.bundle import Preprocessing
from schemas.results import ImageStatus

MAX_IMAGE_BYTES = 32 * 1024 * 1024
"""A bin photo has 16 to 200 KB; a larger file than this is not one."""
MAX_IMAGE_PIXELS = 30_000_000
"""Of a JPEG; read from the header, before a pixel is decoded (decompression bombs). A progressive one takes 9 bytes a
pixel, its coefficients and the pixels: 270 MB."""
MAX_ODD_PIXELS = 12_500_000
"""Of what Pillow reads, which takes up to 23 bytes a pixel (WebP): 290 MB. A telephone's photo has 12.2 million."""
MAX_SCANNED_PIXELS = 2_500_000_000
"""Pixels times scans of a JPEG. Every further scan goes over the whole photo, in a few bytes: 30 kB can ask for a
minute of work, and a file of MAX_IMAGE_BYTES for a day. A progressive photo has ten scans."""
MAX_PADDING = 8
"""Bytes before a JPEG's end mark that harm no pixel. More are what is left of a scan whose codes went astray: a bit that
flipped, or a block that was sent twice, leaves 14 and more and most of the photo wrong."""
SHORTEST_SCAN = 10
"""Bytes of a scan's marker and header, of one component (ISO/IEC 10918-1, B.2.3)."""
MAX_SEGMENTS = 1000
"""Of a JPEG beside its scans, or chunks of a PNG beside its data: Pillow keeps each of them, and joins those of EXIF one by
one, so that a file of MAX_IMAGE_BYTES could ask for a gigabyte, or for an hour. A photo has a dozen."""

# Pillow has readers for dozens of formats, Ghostscript among them; photos come in these.
FORMATS = ("JPEG", "PNG", "WEBP")
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
EXIF_HEADER = b"Exif\0\0"
XMP_HEADER = b"http://ns.adobe.com/xap/1.0/\0"
# Our own limit is lower and checked below; Pillow's would warn (an error under -W error) between the two.
Image.MAX_IMAGE_PIXELS = None
# Whoever decodes many photos does so in many tasks, a core each: OpenCV would take every core for each photo.
cv2.setNumThreads(1)


class UnreadableImage(ValueError):  # noqa: N818 - the status' own name
    """Empty, truncated, damaged or not an image."""

    status = ImageStatus.UNREADABLE_IMAGE


class RejectedImage(ValueError):  # noqa: N818 - as above
    """Beyond one of the limits above, or an animation."""

    status = ImageStatus.IMAGE_REJECTED


def decode_image(data: bytes, preprocessing: Preprocessing) -> np.ndarray:
    """The photo as the network sees it: (S, S, 3) uint8 RGB, C-contiguous, S = `preprocessing.image_size`.

    Raises UnreadableImage or RejectedImage; nothing else, whatever the bytes.
    """
    return resize_image(read_pixels(data), preprocessing)


def resize_image(pixels: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """(height, width, 3) uint8 to (S, S, 3); the aspect ratio is not kept."""
    side = preprocessing.image_size
    height, width = pixels.shape[:2]
    finer_height, finer_width = finer_shape(height, width, side)
    if (finer_height, finer_width) != (height, width):
        pixels = cv2.resize(pixels, (finer_width, finer_height), interpolation=cv2.INTER_LINEAR)
    if pixels.shape[:2] == (side, side):
        return np.ascontiguousarray(pixels)
    return np.ascontiguousarray(cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA))


def finer_shape(height: int, width: int, side: int) -> tuple[int, int]:
    """A multiple of `side` along each axis, to which a photo is interpolated. What is left to do for INTER_AREA are means of
    whole pixels, which OpenCV is quick at, most of all of two by two; of parts of pixels it is slower than a JPEG's
    decoding. On real bin photos the result is as sharp as by areas, and 0.3 of 255 levels off. A photo so odd that this
    would be far larger stays as it is."""

    def finer(length: int) -> int:
        return side * (1 if length <= 1.25 * side else 2 if length <= 3 * side else round(length / side))

    shape = finer(height), finer(width)
    return (height, width) if shape[0] * shape[1] > 4 * height * width + side**2 else shape


def read_pixels(data: bytes) -> np.ndarray:
    """The whole photo, upright (orientation of EXIF or XMP applied): (height, width, 3) uint8 RGB.

    A baseline or progressive JPEG is decoded by simplejpeg, bit for bit as Pillow would and twice as fast;
    everything else by Pillow. Raises UnreadableImage or RejectedImage.
    """
    if not data:
        raise UnreadableImage("empty file")
    if len(data) > MAX_IMAGE_BYTES:
        raise RejectedImage(f"{len(data)} bytes, more than {MAX_IMAGE_BYTES}")
    if data[:2] == b"\xff\xd8":
        metadata = _find_metadata(data)
        pixels = _read_jpeg(data)
        return _upright(_read_with_pillow(data)[0] if pixels is None else pixels, metadata)
    if data[:8] == PNG_SIGNATURE:
        _check_chunks(data)
    return _upright(*_read_with_pillow(data))


# a run of 0xFF before a marker only fills; a `+` here would take quadratic time on such runs
_MARKER = re.compile(rb"\xff([^\x00\xff])")
_MARKER_IN_SCAN = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")
_PADDING = re.compile(r"(\d+) extraneous bytes before marker 0xd9")
_ORIENTATION_IN_XMP = re.compile(rb"tiff:Orientation(?:=[\"']|>)([1-8])")


class _Metadata(NamedTuple):
    """What may say which way is up; empty where it is not there."""

    exif: bytes
    xmp: bytes


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Kind and contents of a JPEG's segments up to its end mark, as libjpeg follows them: it passes over what stands
    between them. Behind the end some telephones put a film."""
    place, marker = 2, _MARKER
    while found := marker.search(data, place):
        kind, place = found[1][0], found.end()
        if kind == 0xD9:
            return
        if kind == 0x01 or 0xD0 <= kind <= 0xD8:  # stand alone
            continue
        end = place + max(2, int.from_bytes(data[place : place + 2], "big"))
        yield kind, data[place + 2 : end]
        place, marker = end, _MARKER_IN_SCAN if kind == 0xDA else _MARKER


def _find_metadata(data: bytes) -> _Metadata:
    """Of a JPEG: from the first segments that hold them. Raises RejectedImage."""
    exif = xmp = b""
    for number, (kind, contents) in enumerate(_segments(data)):
        if kind == 0xDA:  # behind the first scan nobody looks for any
            break
        if number >= MAX_SEGMENTS:
            raise RejectedImage(f"more than {MAX_SEGMENTS} segments beside the picture")
        if kind == 0xE1 and not exif and contents.startswith(EXIF_HEADER):
            exif = contents
        elif kind == 0xE1 and not xmp and contents.startswith(XMP_HEADER):
            xmp = contents
    return _Metadata(exif, xmp)


def _check_chunks(data: bytes) -> None:
    """Of a PNG. Raises RejectedImage."""
    place, num_chunks = len(PNG_SIGNATURE), 0
    while place + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        if kind == b"IEND":
            return
        num_chunks += kind != b"IDAT"
        if num_chunks > MAX_SEGMENTS:
            raise RejectedImage(f"more than {MAX_SEGMENTS} chunks beside the picture")
        place += 12 + length


def _read_jpeg(data: bytes) -> np.ndarray | None:
    """None where Pillow must read it (CMYK, or an oddity that harms no pixel)."""
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        _check_damage(error)
        return None
    is_usual = colorspace in ("YCbCr", "Gray", "RGB")
    _check_pixels(width, height, MAX_IMAGE_PIXELS if is_usual else MAX_ODD_PIXELS)
    _check_scans(data, width, height)
    try:
        # strict: libjpeg only warns where data ends early, and fills the rest of the photo with grey
        pixels = simplejpeg.decode_jpeg(data, colorspace="RGB", strict=True)
    except ValueError as error:
        padding = _PADDING.search(str(error))
        if padding is None or int(padding[1]) > MAX_PADDING:
            _check_damage(error)
            return None
        pixels = simplejpeg.decode_jpeg(data, colorspace="RGB", strict=False)  # nothing comes after it
    if not is_usual:
        return None  # it was decoded for its damage only: Pillow sees none before an end mark
    return pixels


def _check_damage(error: ValueError) -> None:
    """Of libjpeg's first warning: others behind it nobody hears of. Raises UnreadableImage."""
    if "Premature end" in str(error) or "Corrupt JPEG data" in str(error):
        raise UnreadableImage(f"truncated or damaged JPEG: {error}") from error


DAMAGED_METADATA = (OSError, EOFError, SyntaxError, ValueError, LookupError, TypeError, ArithmeticError, struct.error)
"""What Pillow's reader of EXIF raises, and not only its own errors."""


def _read_orientation(metadata: _Metadata) -> int:
    """Values 1..8 of TIFF tag 274, of EXIF or else of XMP, as Pillow reads it."""
    found = Image.Exif()
    try:
        found.load(metadata.exif)
        if 274 in found:
            return found[274]
    except DAMAGED_METADATA:
        pass  # damaged metadata beside good pixels: the photo counts as upright
    in_xmp = _ORIENTATION_IN_XMP.search(metadata.xmp)
    return int(in_xmp[1]) if in_xmp else 1


def _upright(pixels: np.ndarray, metadata: _Metadata) -> np.ndarray:
    """Turned as the metadata says."""
    orientation = _read_orientation(metadata)
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _read_with_pillow(data: bytes) -> tuple[np.ndarray, _Metadata]:
    """The pixels as they are stored, and what Pillow has found beside them."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_pixels(*image.size, MAX_ODD_PIXELS)
            num_pictures = getattr(image, "n_frames", 1)
            if num_pictures > 1 and image.format in ("PNG", "WEBP"):
                # which of them shows the bin? A JPEG's further pictures (MPO) are previews and depth, beside the photo
                raise RejectedImage(f"an animation of {num_pictures} pictures")
            if data[:2] == b"\xff\xd8":
                _check_scans(data, *image.size)
            pixels = np.array(_as_rgb(image))
            return pixels, _metadata_of(image)  # of a PNG it is known once it is decoded
    except (RejectedImage, MemoryError):
        raise
    except UnidentifiedImageError as error:
        # Pillow's own text holds an address in memory: it would differ from run to run
        raise UnreadableImage("not an image of a known format") from error
    except Exception as error:
        message = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise UnreadableImage(message) from error


def _metadata_of(image: Image.Image) -> _Metadata:
    exif, xmp = image.info.get("exif", b""), image.info.get("xmp", b"")
    profile = image.info.get("Raw profile type exif")  # how ImageMagick writes it into a PNG: a name, a length, hex
    if not exif and isinstance(profile, str):
        digits = "".join(profile.split("\n")[3:])
        exif = bytes.fromhex(digits[: len(digits) // 2 * 2]) if re.fullmatch("[0-9a-fA-F]*", digits) else b""
    return _Metadata(exif, xmp if isinstance(xmp, bytes) else str(xmp).encode())


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # 16 bits a pixel: convert("RGB") would clip everything above 255 to white
        wide = np.clip(np.asarray(image), 0, 65535).astype(np.uint32)
        wide += 128
        wide //= 257  # x / 257 rounded, in place: a large photo would need gigabytes as floats
        return Image.fromarray(wide.astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or (image.mode == "P" and "transparency" in image.info):
        opaque = Image.new("RGBA", image.size, (255, 255, 255, 255))
        opaque.alpha_composite(image.convert("RGBA"))
        return opaque.convert("RGB")
    return image.convert("RGB")


def _check_pixels(width: int, height: int, most: int) -> None:
    if width * height > most:
        raise RejectedImage(f"{width} x {height} pixels, more than {most} in all")


def _check_scans(data: bytes, width: int, height: int) -> None:
    most = MAX_SCANNED_PIXELS // max(1, width * height)
    # by what fits in, which tells it of a bin photo at once; then quickly, and never too few
    if len(data) // SHORTEST_SCAN <= most or data.count(b"\xff\xda") <= most:
        return
    scans = 0
    for kind, _ in _segments(data):
        scans += kind == 0xDA
        if scans > most:
            raise RejectedImage(f"more than {most} scans of {width} x {height} pixels: {MAX_SCANNED_PIXELS} in all")
