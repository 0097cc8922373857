"""Coverage-guided fuzzing of what reads other people's bytes: records and photos.

    pip install -e '.[fuzz]'
    python -m tests.fuzz records -max_total_time=300
    python -m tests.fuzz photos -max_total_time=300 -rss_limit_mb=1024

Flags behind the target are libFuzzer's. Whatever raises anything but the
domain's own error, or takes more memory than the limit, ends the run with exit code 77 or 71, and the input that did it
lies in the current folder: keep it as a case of tests/schemas/test_hostile_records.py or tests/model/hostile_photos.py.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import atheris

for name in [name for name in sys.modules if name.partition(".")[0] == "json"]:
    del sys.modules[name]  # imported anew, and watched
with atheris.instrument_imports(include=["schemas", "model", "PIL", "json"]):
    import json

    from model.images import RejectedImage, UnreadableImage, decode_image
    from schemas.abid import UnreadableRecord, parse_record
    from schemas.bundle import Preprocessing
    from tests.model.hostile_photos import encode, jpeg, photo, png, tiff, with_exif

# Its reader in C can't be watched; the one in Python reads the same.
json.scanner.make_scanner = json.scanner.py_make_scanner  # type: ignore[attr-defined]
json.decoder.scanstring = json.decoder.py_scanstring  # type: ignore[attr-defined]

SMALL = Preprocessing(image_size=32)

RECORDS = [
    {"BIN_FCSKU_DATA": {}, "EXPECTED_QUANTITY": 0},
    {"BIN_FCSKU_DATA": {"B0": {"name": "a", "quantity": 2}, "B1": {"name": None, "quantity": 3.0}}},
    {"BIN_FCSKU_DATA": {"B0": {"quantity": 1}}, "EXPECTED_QUANTITY": 1, "other": [1e999, True, "\ud800"]},
]
WORDS = [
    '{"BIN_FCSKU_DATA":{',
    '},"EXPECTED_QUANTITY":',
    '"name":',
    '"quantity":',
    ":null",
    ":-1",
    ":1e999",
    ":2.0",
    "NaN",
]
WORDS += ["JFIF", "Exif", "IHDR", "IDAT", "tRNS", "zTXt", "iCCP", "RIFF", "WEBP", "VP8X", "ALPH", "ANIM"]

PHOTOS = [
    jpeg(),
    jpeg(progressive=True),
    with_exif(tiff((274, 3, 1, 6))),
    encode(photo().convert("CMYK")),
    encode(photo().convert("L")),
    png(8, 8),
    png(8, 8, kind=0, depth=16),
    encode(photo(16, 16).convert("P"), "PNG", transparency=3),
    encode(photo(16, 16), "WEBP"),
    encode(photo(16, 16).convert("RGBA"), "WEBP", lossless=True),
]


def read_record(data: bytes) -> None:
    try:
        record = parse_record(data)
    except UnreadableRecord as error:
        assert "\n" not in str(error)
    else:
        assert record.expected_qty >= 0
        json.dumps([line.name for line in record.lines]).encode()


def read_photo(data: bytes) -> None:
    try:
        pixels = decode_image(data, SMALL)
    except (UnreadableImage, RejectedImage) as error:
        assert "\n" not in str(error)
    else:
        assert pixels.shape == (32, 32, 3)


def main() -> None:
    targets: dict[str, tuple[Callable[[bytes], None], list[bytes]]] = {
        "records": (read_record, [json.dumps(record).encode() for record in RECORDS]),
        "photos": (read_photo, PHOTOS),
    }
    if len(sys.argv) < 2 or sys.argv[1] not in targets:
        raise SystemExit(__doc__)
    warnings.simplefilter("ignore")  # Pillow's, about odd metadata beside good pixels
    target, seeds = targets[sys.argv[1]]
    with tempfile.TemporaryDirectory() as folder:
        corpus, words = Path(folder) / "corpus", Path(folder) / "words"
        corpus.mkdir()
        for number, seed in enumerate(seeds):
            (corpus / f"{number:03d}").write_bytes(seed)
        words.write_text("".join(f"{json.dumps(word)}\n" for word in WORDS))
        atheris.Setup([sys.argv[0], str(corpus), f"-dict={words}", *sys.argv[2:]], target)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
