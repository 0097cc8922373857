"""Whatever the bytes, a photo gets a status, and the process that reads it neither dies nor grows without bound."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.model.hostile_photos import HOSTILE, OK, REJECTED, UNREADABLE, decode, jpeg, png, with_exif

PEAK_MB = 310
"""Beyond what the process has anyway. The dearest is a WebP of 12 megapixels with alpha: two canvases, and the pixels thrice or more."""
PROGRESSIVE, EXIF_JPEG, PNG = (
    jpeg(progressive=True),
    with_exif(b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0" + bytes(4)),
    png(16, 12),
)

unhurried = settings(deadline=None, max_examples=150)


def test_hostile_photos_get_their_status_within_bounded_memory(capsys: pytest.CaptureFixture[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.model.hostile_photos", "--json"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert [row["photo"] for row in found] == list(HOSTILE)
    assert [row for row in found if not row["bytes"]] == []  # the process that made it died
    assert [row for row in found if row["status"] not in HOSTILE[row["photo"]][0].split(" or ")] == []
    assert {row["photo"]: row["peak_mb"] for row in found if row["peak_mb"] > PEAK_MB} == {}


def assert_status(data: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of damaged metadata; the audit's workers print that and go on
        assert decode(data) in (OK, UNREADABLE, REJECTED)


@unhurried
@given(st.binary(max_size=300), st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\x10\0\0\0WEBP"]))
def test_any_bytes_get_a_status(tail: bytes, head: bytes) -> None:
    assert_status(head + tail)


@unhurried
@given(
    st.sampled_from([jpeg(), PROGRESSIVE, EXIF_JPEG, PNG]),
    st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=8),
    st.integers(0, 60),
)
def test_a_damaged_photo_gets_a_status(data: bytes, damages: list[tuple[int, int]], cut: int) -> None:
    damaged = bytearray(data[: len(data) - cut])
    for place, value in damages:
        damaged[place % len(damaged)] = value
    assert_status(bytes(damaged))


@unhurried
@given(st.binary(max_size=200), st.booleans())
def test_any_exif_leaves_a_good_photo_readable(exif: bytes, little: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert decode(with_exif((b"II*\0\x08\0\0\0" if little else b"MM\0*\0\0\0\x08") + exif)) == OK
