"""Photos made to break a reader, each decoded in a process of its own: status, seconds, peak memory.

python -m tests.model.hostile_photos
"""

from __future__ import annotations

import io
import json
import os
import resource
import struct
import sys
import time
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

from model.images import MAX_IMAGE_BYTES, RejectedImage, UnreadableImage, decode_image
from schemas.bundle import Preprocessing

SIDE, ODD_SIDE = 5470, 3530
"""So many pixels squared are just allowed: of a JPEG, and of what Pillow reads."""
HUGE = 7000
ZIP = b"PK\x05\x06" + bytes(18)


def encode(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def photo(width: int = 64, height: int = 48) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8))


def jpeg(**options: object) -> bytes:
    return encode(photo(), "JPEG", **options)


def jpeg_that_claims(width: int, height: int) -> bytes:
    data = bytearray(jpeg())
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, *more: bytes, rows: bytes | None = None, kind: int = 2, depth: int = 8) -> bytes:
    """Black, unless `rows` says otherwise; `kind` 2 is RGB, 6 RGBA, 0 grey. `more` chunks come before the pixels."""
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    channels = {0: 1, 2: 3, 6: 4}[kind]
    body = bytes((1 + channels * width * depth // 8) * height) if rows is None else rows
    pixels = chunk(b"IDAT", zlib.compress(body, 1)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(more) + pixels


def with_exif(exif: bytes) -> bytes:
    """A good JPEG with this as its Exif block."""
    body = b"Exif\0\0" + exif
    return b"\xff\xd8\xff\xe1" + struct.pack(">H", len(body) + 2) + body + jpeg()[2:]


def tiff(*entries: tuple[int, int, int, int], next_ifd: int = 0) -> bytes:
    """(tag, type, count, value or offset) as the one directory of a TIFF block."""
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(entries)) + body + struct.pack("<I", next_ifd)


def webp_canvas(side: int) -> bytes:
    """An animation of one 8 x 8 picture on a canvas of `side` x `side`: 90 bytes."""
    still = encode(Image.new("RGB", (8, 8)), "WEBP", lossless=True)[12:]
    frame = bytes(6) + (7).to_bytes(3, "little") * 2 + bytes(4) + still
    body = b"WEBPVP8X" + struct.pack("<I4B", 10, 2, 0, 0, 0) + (side - 1).to_bytes(3, "little") * 2
    body += b"ANIM" + struct.pack("<I", 6) + bytes(6) + b"ANMF" + struct.pack("<I", len(frame)) + frame
    return b"RIFF" + struct.pack("<I", len(body)) + body


def palette_png(side: int) -> bytes:
    image = Image.new("P", (side, side))
    image.putpalette(bytes(768))
    return encode(image, "PNG", transparency=0, compress_level=1)


def turned(mode: str, side: int, kind: str = "JPEG", **options: object) -> bytes:
    """A black photo that its Exif block says to turn by 90 degrees."""
    exif = Image.Exif()
    exif[274] = 6
    return encode(Image.new(mode, (side, side)), kind, exif=exif, **options)


def with_many_scans(count: int) -> bytes:
    """A progressive JPEG of SIDE x SIDE grey pixels whose last scan stands there `count` times."""
    data = encode(Image.new("L", (SIDE, SIDE), 128), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    tables = data.rindex(b"\xff\xc4", 0, last)
    return data[:-2] + data[tables:-2] * count + b"\xff\xd9"


OK, UNREADABLE, REJECTED = "scored", "unreadable_image", "image_rejected"

HOSTILE: dict[str, tuple[str, Callable[[], bytes]]] = {
    "JPEG header of 50,000 x 50,000": (REJECTED, lambda: jpeg_that_claims(50_000, 50_000)),
    "PNG header of 50,000 x 50,000": (REJECTED, lambda: png(50_000, 50_000, rows=b"\0")),
    "PNG header of 2^31 x 2^31": (REJECTED, lambda: png(2**31 - 1, 2**31 - 1, rows=b"\0")),
    "JPEG header of 5,470 x 5,470, no such pixels": (UNREADABLE, lambda: jpeg_that_claims(SIDE, SIDE)),
    "JPEG header of 0 x 0": (UNREADABLE, lambda: jpeg_that_claims(0, 0)),
    "33 MB of zeros": (REJECTED, lambda: bytes(MAX_IMAGE_BYTES + 1)),
    "33 MB behind a JPEG's first bytes": (REJECTED, lambda: b"\xff\xd8" + bytes(MAX_IMAGE_BYTES)),
    "grey JPEG of 49 megapixels": (REJECTED, lambda: encode(Image.new("L", (HUGE, HUGE)))),
    "JPEG of 30 megapixels, turned": (OK, lambda: turned("RGB", SIDE)),
    "progressive JPEG of 30 megapixels, turned": (
        OK,
        lambda: turned("RGB", SIDE, progressive=True, subsampling=0),
    ),
    "CMYK JPEG of 49 megapixels": (REJECTED, lambda: encode(Image.new("CMYK", (HUGE, HUGE)))),
    "progressive CMYK JPEG of 12 megapixels, turned": (OK, lambda: turned("CMYK", ODD_SIDE, progressive=True)),
    "PNG of 49 megapixels": (REJECTED, lambda: png(HUGE, HUGE)),
    "PNG of 12 megapixels": (OK, lambda: png(ODD_SIDE, ODD_SIDE)),
    "PNG with alpha of 12 megapixels": (OK, lambda: png(ODD_SIDE, ODD_SIDE, kind=6)),
    "16-bit PNG of 12 megapixels": (OK, lambda: png(ODD_SIDE, ODD_SIDE, kind=0, depth=16)),
    "16-bit PNG with alpha of 49 megapixels": (REJECTED, lambda: png(HUGE, HUGE, kind=6, depth=16)),
    "16-bit PNG with alpha of 12 megapixels": (OK, lambda: png(ODD_SIDE, ODD_SIDE, kind=6, depth=16)),
    "palette PNG with transparency of 49 megapixels": (REJECTED, lambda: palette_png(HUGE)),
    "palette PNG with transparency of 12 megapixels": (OK, lambda: palette_png(ODD_SIDE)),
    "WebP canvas of 16,384 x 16,384": (REJECTED, lambda: webp_canvas(16_384)),
    "WebP canvas of 7,000 x 7,000": (REJECTED, lambda: webp_canvas(HUGE)),
    "WebP canvas of 12 megapixels": (OK, lambda: webp_canvas(ODD_SIDE)),
    "WebP with alpha of 12 megapixels, turned": (OK, lambda: turned("RGBA", ODD_SIDE, "WEBP", lossless=True)),
    "progressive JPEG of 30 megapixels with 2,000 scans": (REJECTED, lambda: with_many_scans(2000)),
    "PNG one pixel high and 10,000,000 wide": (OK, lambda: png(10_000_000, 1)),
    "PNG whose text grows from 200 kB to 200 MB": (
        UNREADABLE,
        lambda: png(8, 8, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(200 * 2**20), 9))),
    ),
    "PNG whose colour profile grows to 200 MB": (
        f"{OK} or {UNREADABLE}",  # Pillow 12 passes over the profile, 13 refuses it
        lambda: png(8, 8, chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(200 * 2**20), 9))),
    ),
    "PNG with pixels for a thousand more rows": (OK, lambda: png(64, 48, rows=bytes(193 * 1048))),
    "JPEG cut in half": (UNREADABLE, lambda: jpeg(quality=95)[:3000]),
    "JPEG of its header only": (UNREADABLE, lambda: jpeg()[:300]),
    "JPEG padded with 1 MB of zeros": (OK, lambda: jpeg() + bytes(2**20)),
    "JPEG padded with 1 MB of FF": (OK, lambda: jpeg() + b"\xff" * 2**20),
    "JPEG after 100 bytes of zeros": (UNREADABLE, lambda: bytes(100) + jpeg()),
    "JPEG and zip in one": (OK, lambda: jpeg() + ZIP),
    "JPEG and HTML in one": (OK, lambda: jpeg(comment=b"<script>alert(1)</script>")),
    "GIF and script in one": (UNREADABLE, lambda: b"GIF89a/*" + bytes(30) + b"*/=1;alert(1)"),
    "PDF and JPEG in one": (UNREADABLE, lambda: b"%PDF-1.7\n" + jpeg()),
    "PostScript": (UNREADABLE, lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nsystemdict /quit get exec\n"),
    "SVG that reads /etc/passwd": (
        UNREADABLE,
        lambda: b'<!DOCTYPE s [<!ENTITY x SYSTEM "file:///etc/passwd">]><svg>&x;</svg>',
    ),
    "TIFF": (UNREADABLE, lambda: encode(photo(), "TIFF")),
    "animated WebP of 300 frames": (
        REJECTED,
        lambda: encode(
            photo(), "WEBP", save_all=True, append_images=[photo().rotate(n) for n in range(1, 300)], duration=1
        ),
    ),
    "animated PNG of 2 frames": (
        REJECTED,
        lambda: encode(photo(), "PNG", save_all=True, append_images=[photo().rotate(180)]),
    ),
    "Exif cut off, beside a density": (OK, lambda: jpeg(dpi=(72, 72), exif=b"Exif\0\0II*\0")),
    "Exif cut off in its offset, beside a density": (OK, lambda: jpeg(dpi=(72, 72), exif=b"Exif\0\0MM\0*\0\0")),
    "Exif of noise": (OK, lambda: with_exif(np.random.default_rng(1).bytes(60_000))),
    "Exif whose directory is its own successor": (OK, lambda: with_exif(tiff((274, 3, 1, 1), next_ifd=8))),
    "Exif that claims four billion orientations": (OK, lambda: with_exif(tiff((274, 3, 2**32 - 1, 8)))),
    "Exif with orientation 60,000": (OK, lambda: with_exif(tiff((274, 3, 1, 60_000)))),
    "Exif with text for an orientation": (OK, lambda: with_exif(tiff((274, 2, 4, 0x00363636)))),
    "Exif with values beyond its end": (OK, lambda: with_exif(tiff((274, 5, 9, 2**31), (270, 2, 2**30, 4)))),
}


def decode(data: bytes) -> str:
    """The status of a photo."""
    try:
        decode_image(data, Preprocessing(image_size=32))
    except UnreadableImage:
        return UNREADABLE
    except RejectedImage:
        return REJECTED
    return OK


def measure(name: str) -> dict[str, object]:
    """Decodes one hostile photo in a child process. Memory is the peak beyond what the process had before."""
    # made in a child too: memory that was freed here would be there to decode with, and not be counted
    data = in_child(HOSTILE[name][1])

    def decode_measured() -> bytes:
        before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
        status = decode(data)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        found = {"status": status, "seconds": round(time.monotonic() - started, 2), "peak_mb": peak // 1024}
        return json.dumps(found).encode()

    return {"photo": name, "bytes": len(data), **json.loads(in_child(decode_measured) or '{"status": "died"}')}


def in_child(call: Callable[[], bytes]) -> bytes:
    """What `call` returns in a process of its own; nothing where that died."""
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        with os.fdopen(writable, "wb") as pipe:
            pipe.write(call())
        os._exit(0)
    os.close(writable)
    with os.fdopen(readable, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return answer


def main() -> None:
    found = [measure(name) for name in HOSTILE]
    if "--json" in sys.argv:
        print(json.dumps(found))
        return
    print("| photo | bytes | status | seconds | peak memory |\n|---|---:|---|---:|---:|")
    for row in found:
        print(
            f"| {row['photo']} | {row['bytes']:,} | {row['status']} | {row.get('seconds')} | {row.get('peak_mb')} MB |"
        )


if __name__ == "__main__":
    main()
