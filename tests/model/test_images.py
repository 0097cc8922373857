"""decode_image: odd files are read, damaged ones are refused, and nothing is half-grey."""

from __future__ import annotations

import io
import struct
import time
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from model.images import (
    MAX_SCANNED_PIXELS,
    RejectedImage,
    UnreadableImage,
    _check_scans,
    decode_image,
    finer_shape,
    read_pixels,
    resize_image,
)
from model.transforms import augment
from schemas.bundle import Preprocessing
from tests import dump
from tests.model.hostile_photos import encode, png

PREPROCESSING = Preprocessing(image_size=64)


@pytest.fixture
def photo() -> Image.Image:
    rows, columns = np.mgrid[0:120, 0:160]
    pixels = np.stack([rows * 2, columns, 255 - rows], axis=2).astype(np.uint8)
    pixels[10:30, 10:50] = (250, 20, 20)
    return Image.fromarray(pixels)


def test_a_jpeg_has_the_pixels_that_pillow_reads(photo: Image.Image) -> None:
    data = encode(photo, quality=85)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.abs(read_pixels(data).astype(int) - expected).max() <= 1


def test_the_result_is_a_contiguous_square_of_bytes(photo: Image.Image) -> None:
    pixels = decode_image(encode(photo), PREPROCESSING)
    assert pixels.shape == (64, 64, 3)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous


@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("ending", [b"", b"\xff\xd9", bytes(3000)], ids=["cut", "cut with end mark", "zeros"])
def test_a_truncated_jpeg_is_unreadable_and_never_half_grey(
    photo: Image.Image, mode: str, progressive: bool, ending: bytes
) -> None:
    data = encode(photo.convert(mode), quality=95, progressive=progressive)
    with pytest.raises(UnreadableImage):
        decode_image(data[: len(data) // 2] + ending, PREPROCESSING)


@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
def test_bytes_before_the_end_mark_are_padding_or_what_damage_left(photo: Image.Image, mode: str) -> None:
    data = encode(photo.convert(mode), quality=95)
    expected, middle = read_pixels(data), len(data) // 2
    # the decoder takes two of them, or four, for the last of the picture
    np.testing.assert_array_equal(read_pixels(data[:-2] + bytes(10) + data[-2:]), expected)
    with pytest.raises(UnreadableImage):
        read_pixels(data[:-2] + bytes(13) + data[-2:])
    with pytest.raises(UnreadableImage):
        read_pixels(data[:middle] + data[middle - 1000 :])  # a block that was sent twice


def test_stray_bytes_in_front_do_not_hide_that_half_a_photo_is_lost(photo: Image.Image) -> None:
    data = encode(photo, quality=95)
    end_of_first = 4 + int.from_bytes(data[4:6], "big")
    with pytest.raises(UnreadableImage):
        read_pixels(data[:end_of_first] + b"\0\0" + data[end_of_first : len(data) // 2] + b"\xff\xd9")


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_a_truncated_png_or_webp_is_unreadable(photo: Image.Image, kind: str) -> None:
    data = encode(photo, kind)
    with pytest.raises(UnreadableImage):
        decode_image(data[: len(data) // 2], PREPROCESSING)


@pytest.mark.parametrize("data", [b"", b"not an image", b"\xff\xd8", b"%PDF-1.7 ..."])
def test_what_is_no_image_is_unreadable(data: bytes) -> None:
    with pytest.raises(UnreadableImage):
        decode_image(data, PREPROCESSING)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_png_and_webp_are_read_whatever_their_name(photo: Image.Image, kind: str) -> None:
    data = encode(photo, kind, **({"lossless": True} if kind == "WEBP" else {}))
    assert np.array_equal(read_pixels(data), np.asarray(photo))


@pytest.mark.parametrize("mode", ["CMYK", "L"])
def test_cmyk_and_grey_jpegs_are_read_as_pillow_does(photo: Image.Image, mode: str) -> None:
    data = encode(photo.convert(mode), quality=95)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.abs(read_pixels(data).astype(int) - expected).max() <= 1


def test_transparent_pixels_do_not_show_what_they_hide(photo: Image.Image) -> None:
    with_alpha = photo.copy()
    with_alpha.putalpha(Image.new("L", photo.size, 0))
    assert (read_pixels(encode(with_alpha, "PNG")) == 255).all()


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    wide = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    pixels = read_pixels(encode(Image.fromarray(wide), "PNG"))
    assert np.abs(pixels[..., 0].astype(float) - wide / 257).max() <= 0.5


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_the_exif_orientation_is_applied(photo: Image.Image, orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    data = encode(photo, kind, exif=exif)

    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    assert np.abs(read_pixels(data).astype(int) - expected).max() <= 1


def test_the_first_of_two_blocks_of_metadata_turns_a_photo(photo: Image.Image) -> None:
    exif = Image.Exif()
    exif[274] = 6
    turned = encode(photo, exif=exif)
    exif[274] = 1
    block = exif.tobytes()
    second = b"\xff\xe1" + struct.pack(">H", 2 + len(block)) + block
    end_of_first = turned.index(b"\xff\xe1") + 2
    end_of_first += int.from_bytes(turned[end_of_first : end_of_first + 2], "big")
    assert (read_pixels(turned[:end_of_first] + second + turned[end_of_first:]) == read_pixels(turned)).all()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "CMYK"])
@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b""])
def test_damaged_metadata_leaves_a_photo_upright(photo: Image.Image, kind: str, exif: bytes) -> None:
    image = photo.convert("CMYK") if kind == "CMYK" else photo
    data = encode(image, "JPEG" if kind == "CMYK" else kind, exif=exif)
    assert (read_pixels(data) == read_pixels(encode(image, "JPEG" if kind == "CMYK" else kind))).all()


def test_the_orientation_is_found_behind_other_metadata(photo: Image.Image) -> None:
    exif = Image.Exif()
    exif[274] = 6
    turned = encode(photo, "JPEG", exif=exif)
    profile = b"\xff\xe2" + struct.pack(">H", 65535) + bytes(65533)
    data = turned[:2] + profile + turned[2:]
    assert (read_pixels(data) == read_pixels(turned)).all()
    assert read_pixels(turned).shape[:2] == read_pixels(encode(photo, "JPEG")).shape[1::-1]


@pytest.mark.parametrize("segment", [b"\xff\xe1\0\x10Exif\0\0" + bytes(8), b"\xff\xe5\0\2", b"\xff\xff\xff\xe5\0\2"])
def test_segments_without_end_are_rejected_at_once(photo: Image.Image, segment: bytes) -> None:
    data = encode(photo, "JPEG")
    assert read_pixels(data[:2] + 900 * segment + data[2:]).shape[2] == 3
    with pytest.raises(RejectedImage, match="segments beside the picture"):
        read_pixels(data[:2] + 1_000_000 * segment + data[2:])


@pytest.mark.parametrize("filling", [b"\xff" * 1_000_000, b"\xff\xda\0\2" * 100_000, b"\xff\xff\xff\0" * 250_000])
def test_what_fills_a_file_is_passed_over_at_once(photo: Image.Image, filling: bytes) -> None:
    data = encode(photo, "JPEG")
    began = time.process_time()
    for place in (2, len(data) // 2):
        with pytest.raises((UnreadableImage, RejectedImage)):
            read_pixels(data[:place] + filling)
    assert time.process_time() - began < 20  # minutes, where runs of 0xFF are searched anew from each of their bytes


def orientation_in(carrier: str, photo: Image.Image) -> bytes:
    exif = Image.Exif()
    exif[274] = 6
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    if carrier == "PNG profile":  # ImageMagick's
        more = PngImagePlugin.PngInfo()
        block = exif.tobytes()
        more.add_text("Raw profile type exif", f"\nexif\n{len(block):8}\n{block.hex()}\n")
        return encode(photo, "PNG", pnginfo=more)
    if carrier == "JPEG XMP":
        data = encode(photo, "JPEG")
        body = b"http://ns.adobe.com/xap/1.0/\0" + xmp
        return data[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(body)) + body + data[2:]
    if carrier == "WEBP XMP":
        return encode(photo, "WEBP", lossless=True, xmp=xmp)
    exif[37500] = bytes(100_000)  # the camera's own notes, behind the orientation
    return encode(photo, "WEBP", lossless=True, exif=exif)


@pytest.mark.parametrize("carrier", ["PNG profile", "JPEG XMP", "WEBP XMP", "long"])
def test_the_orientation_is_found_where_programs_put_it(photo: Image.Image, carrier: str) -> None:
    data = orientation_in(carrier, photo)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    assert expected.shape[:2] == (photo.width, photo.height)
    assert (read_pixels(data) == expected).all()


def test_a_png_may_have_padding_behind_its_end(photo: Image.Image) -> None:
    assert (read_pixels(encode(photo, "PNG") + bytes(100_000)) == np.asarray(photo)).all()


def test_chunks_without_end_are_rejected_at_once(photo: Image.Image) -> None:
    data = encode(photo, "PNG")
    text = b"a\0b"
    chunk = struct.pack(">I", len(text)) + b"tEXt" + text + struct.pack(">I", zlib.crc32(b"tEXt" + text))
    assert read_pixels(data[:33] + 900 * chunk + data[33:]).shape[2] == 3
    with pytest.raises(RejectedImage, match="chunks beside the picture"):
        read_pixels(data[:33] + 100_000 * chunk + data[33:])


def test_a_png_may_have_its_picture_in_many_chunks(photo: Image.Image) -> None:
    data = encode(photo, "PNG")
    start = data.index(b"IDAT") - 4
    empty = struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    assert (read_pixels(data[:start] + 1001 * empty + data[start:]) == np.asarray(photo)).all()


def test_every_scan_of_a_file_of_nothing_but_scans_counts() -> None:
    scan = b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, 1, 0, 0, 63, 0)
    most = MAX_SCANNED_PIXELS // (5000 * 5000)
    _check_scans(b"\xff\xd8" + most * scan, 5000, 5000)
    with pytest.raises(RejectedImage, match=f"more than {most} scans"):
        _check_scans(b"\xff\xd8" + (most + 1) * scan, 5000, 5000)


def test_a_film_behind_a_photo_has_no_scans(photo: Image.Image) -> None:
    data = encode(photo.resize((4032, 3024)), "JPEG", quality=20)
    film = 300 * (b"\xff\xda" + bytes(1000))
    assert read_pixels(data + film).shape == (3024, 4032, 3)


def test_bytes_after_the_end_and_tiny_photos_are_fine(photo: Image.Image) -> None:
    data = encode(photo)
    assert np.array_equal(read_pixels(data + bytes(4096)), read_pixels(data))
    assert decode_image(encode(photo.resize((3, 2))), PREPROCESSING).shape == (64, 64, 3)


def test_a_bomb_is_rejected_from_its_header() -> None:
    with pytest.raises(RejectedImage, match="pixels"):
        decode_image(png(60_000, 60_000, rows=bytes(100)), PREPROCESSING)


def test_a_jpeg_bomb_is_rejected_from_its_header(photo: Image.Image) -> None:
    data = bytearray(encode(photo))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 65000, 65000)
    with pytest.raises(RejectedImage, match="pixels"):
        decode_image(bytes(data), PREPROCESSING)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_an_animation_is_rejected_and_one_picture_of_its_kind_is_not(photo: Image.Image, kind: str) -> None:
    with pytest.raises(RejectedImage, match="animation of 2 pictures"):
        read_pixels(encode(photo, kind, save_all=True, append_images=[photo.rotate(180)]))
    assert read_pixels(encode(photo, kind, save_all=True)).shape == (120, 160, 3)


@pytest.mark.parametrize("is_odd", [False, True])
def test_a_jpeg_with_a_second_picture_behind_it_is_a_photo(photo: Image.Image, is_odd: bool) -> None:
    written = bytearray(encode(photo, "MPO", save_all=True, append_images=[photo.rotate(180)]))
    written[written.index(b"\xff\xda") + 12] -= is_odd  # a range of its scan that libjpeg warns of, and Pillow reads
    data = bytes(written)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.abs(read_pixels(data).astype(int) - expected).max() <= 1


def test_what_pillow_reads_has_a_lower_limit_since_it_takes_more_memory() -> None:
    with pytest.raises(RejectedImage, match="pixels, more than 12500000"):
        read_pixels(png(4000, 4000, rows=bytes(100)))


def test_a_file_that_is_too_large_is_rejected() -> None:
    with pytest.raises(RejectedImage, match="bytes"):
        decode_image(b"\xff\xd8" + bytes(33 * 1024 * 1024), PREPROCESSING)


@pytest.mark.parametrize("size", [(468, 334), (224, 224), (300, 224), (600, 900), (1500, 400), (70, 75)], ids=str)
@pytest.mark.parametrize("side", [64, 112, 160])
def test_supersampling_comes_close_to_areas(size: tuple[int, int], side: int) -> None:
    pixels = read_pixels(dump.photo(4, 7, size=size))
    areas = cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA)
    found = resize_image(pixels, Preprocessing(image_size=side))
    assert (found.shape, found.dtype, found.flags.c_contiguous) == ((side, side, 3), np.uint8, True)
    assert np.abs(found.astype(float) - areas).mean() < 3
    if all(length % side == 0 for length in size):
        assert np.array_equal(found, areas)


@pytest.mark.parametrize("side", [64, 100, 112, 160, 192, 224])
def test_supersampling_aliases_no_more_than_areas(side: int) -> None:
    """Stripes two pixels wide are finer than the result can show: what is left of them is grey."""
    stripes = np.zeros((334, 468, 3), np.uint8)
    stripes[:, ::4] = stripes[:, 1::4] = 255
    areas = cv2.resize(stripes, (side, side), interpolation=cv2.INTER_AREA)
    assert resize_image(stripes, Preprocessing(image_size=side)).std() < 1.2 * areas.std() + 1


def test_an_odd_photo_takes_no_more_memory_than_it_has() -> None:
    line = np.zeros((1, 300_000, 3), np.uint8)
    line[:, 150_000:] = 200
    assert finer_shape(1, 300_000, 64) == (1, 300_000)
    found = resize_image(line, Preprocessing(image_size=64))
    assert (found[:, :31] == 0).all() and (found[:, 33:] == 200).all()
    moved = augment(line, 1, 0.0, 64)  # longer than OpenCV moves
    assert {int(moved[:, :30].mean()), int(moved[:, 34:].mean())} == {0, 200}


def test_what_is_no_image_is_named_the_same_in_every_run() -> None:
    with pytest.raises(UnreadableImage, match=r"^not an image of a known format$"):
        decode_image(b"hello world" * 50, Preprocessing(image_size=32))


def test_a_transparent_colour_of_a_palette_does_not_show(photo: Image.Image) -> None:
    drawn = Image.new("P", photo.size, 0)
    drawn.putpalette([200, 0, 0, 0, 200, 0])
    data = io.BytesIO()
    drawn.save(data, "PNG", transparency=0)
    assert (read_pixels(data.getvalue()) == 255).all()
