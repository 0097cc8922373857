import asyncio
import hashlib
import http.server
import io
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from obstore.exceptions import GenericError, PermissionDeniedError, UnauthenticatedError
from PIL import Image

from jobs.exploring.looks import look_at
from jobs.ingesting.records import StorageOutage, read_records
from jobs.platform import fetching, s3, storage
from jobs.platform.fetching import OUTAGE_FAILURES
from jobs.platform.roots import is_allowed
from jobs.stages import images
from jobs.stages.images import (
    MIN_CONTRAST,
    FetchPlan,
    Photo,
    _pixels_column,
    fetch_allowed,
    fetch_rows,
    measure_contrast,
    pixels_of,
)
from jobs.training.labelled_bins import _check_batch
from model.images import decode_image
from schemas.bundle import Preprocessing
from schemas.errors import GateError
from tests.conftest import free_port
from tests.dump import manifest_table, photo
from tests.model.hostile_photos import png

PREPROCESSING = Preprocessing(image_size=32)


@pytest.fixture
def images_uri(place: str) -> str:
    return f"{place}/images"


def _plan(images_uri: str) -> FetchPlan:
    return FetchPlan(PREPROCESSING, (images_uri,), False, None)


def _variant(**options: object) -> bytes:
    sink = io.BytesIO()
    image = Image.open(io.BytesIO(photo(3, 3)))
    mode = options.pop("mode", None)
    image = image.convert(str(mode)) if mode else image
    image.save(sink, **options)  # type: ignore[arg-type]
    return sink.getvalue()


GOOD = {
    "png": _variant(format="PNG"),
    "webp": _variant(format="WEBP"),
    "cmyk": _variant(format="JPEG", mode="CMYK"),
    "grey": _variant(format="JPEG", mode="L"),
    "alpha": _variant(format="PNG", mode="RGBA"),
    "deep": _variant(format="PNG", mode="I;16"),
    "progressive": _variant(format="JPEG", progressive=True),
    "padded": photo(3, 3) + b"\0" * 500,
    "small": photo(1, 3, size=(24, 20)),
}
BAD = {
    "empty": (b"", "unreadable_image"),
    "truncated": (photo(3, 3)[:-400], "unreadable_image"),
    "text": (b"<html>not found</html>", "unreadable_image"),
    "bomb": (png(60_000, 60_000, rows=bytes(100)), "image_rejected"),
}


def test_each_row_gets_a_status_and_none_is_lost(images_uri: str) -> None:
    names = [*GOOD, *BAD, "absent"]
    for name, data in {**GOOD, **{name: data for name, (data, _) in BAD.items()}}.items():
        storage.write_bytes(f"{images_uri}/{name}.jpg", data)
    rows = manifest_table(images_uri, [1] * len(names), image_uri=[f"{images_uri}/{name}.jpg" for name in names])
    fetched = fetch_rows(rows, _plan(images_uri))
    expected = ["scored"] * len(GOOD) + [status for _, status in BAD.values()] + ["missing_image"]
    assert dict(zip(names, fetched["status"].to_pylist(), strict=True)) == dict(zip(names, expected, strict=True))
    assert fetched["bin_id"].to_pylist() == rows["bin_id"].to_pylist()
    errors = fetched["error"].to_pylist()
    assert all(error is None for error in errors[: len(GOOD)])
    assert all(errors[len(GOOD) :])
    assert pixels_of(fetched, PREPROCESSING).shape == (len(GOOD), 32, 32, 3)


def test_a_photo_that_is_too_large_is_rejected(images_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = photo(3, 3)
    storage.write_bytes(f"{images_uri}/00000.jpg", data)
    monkeypatch.setattr(images, "MAX_IMAGE_BYTES", len(data) - 1)
    fetched = fetch_rows(manifest_table(images_uri, [1]), _plan(images_uri))
    assert fetched["status"].to_pylist() == ["image_rejected"]


def test_a_photo_outside_the_roots_is_rejected_unread(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    root.mkdir()
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(photo(1, 1))
    (root / "link.jpg").symlink_to(secret)
    outside = [
        "file:///etc/passwd",
        str(secret),
        f"{root}/../secret.jpg",
        f"{root}/link.jpg",
        "http://169.254.169.254/a",
    ]
    rows = manifest_table(str(root), [1] * len(outside), image_uri=outside)
    fetched = fetch_rows(rows, _plan(str(root)))
    assert set(fetched["status"].to_pylist()) == {"image_rejected"}


@pytest.mark.parametrize(
    ("uri", "allowed"),
    [
        ("s3://bins/photos/1.jpg", True),
        ("s3://bins/photos-other/1.jpg", False),
        ("s3://other/photos/1.jpg", False),
        ("s3://bins/photos/../secret.jpg", False),
        ("s3://bins/photos//1.jpg", False),
    ],
)
def test_s3_roots_are_whole_folders(uri: str, allowed: bool) -> None:
    assert is_allowed(uri, ("s3://bins/photos",)) is allowed


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(s3.RETRIES, "retry_timeout", timedelta(seconds=0.5))


def _fetch_from(port: int, monkeypatch: pytest.MonkeyPatch, num_photos: int) -> list[str]:
    """Errors by photo, from a server that a bucket of its own is looked for on (stores are kept by bucket)."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    images_uri = f"s3://bucket-{uuid.uuid4().hex[:8]}/images"
    fetched = fetch_rows(manifest_table(images_uri, [1] * num_photos), _plan(images_uri))
    assert set(fetched["status"].to_pylist()) == {"fetch_failed"}
    return fetched["error"].to_pylist()


def test_a_storage_that_is_away_ends_the_run_and_a_few_photos_given_up_do_not(
    impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    errors = _fetch_from(port, monkeypatch, OUTAGE_FAILURES - 1)
    assert set(errors) == {"GenericError: Connection refused"}
    with pytest.raises(
        GateError, match=rf"^http://127.0.0.1:{port}: the storage stopped .* Connection refused, like 15"
    ):
        _fetch_from(port, monkeypatch, OUTAGE_FAILURES)
    images_uri = f"s3://bucket-{uuid.uuid4().hex[:8]}/images"
    with pytest.raises(GateError, match="the storage stopped delivering"):
        look_at(manifest_table(images_uri, [1] * OUTAGE_FAILURES), _plan(images_uri))


class _Refuse(http.server.BaseHTTPRequestHandler):
    """Refuses every request for good."""

    def do_GET(self) -> None:
        self.send_error(400)

    def log_message(self, *arguments: object) -> None:
        """Quietly."""


class _CutRefusal(_Refuse):
    """Says twice that there is no such object, and breaks off before it has said so the first time."""

    num_asked = 0

    def do_GET(self) -> None:
        type(self).num_asked += 1
        self.send_response(404)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b" " * (10 if self.num_asked == 1 else 1000))
        self.close_connection = True


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[int | None]:
    """The port of a server that answers with the parameter's handler; None without one."""
    if request.param is None:
        yield None
        return
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), request.param) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("server", [_CutRefusal], indirect=True)
@pytest.mark.parametrize("reader", ["photo", "bytes"])
def test_an_answer_cut_short_is_asked_for_again(server: int, reader: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server}")
    monkeypatch.setattr(_CutRefusal, "num_asked", 0)
    images_uri = f"s3://bucket-{uuid.uuid4().hex[:8]}/images"
    if reader == "photo":
        fetched = fetch_rows(manifest_table(images_uri, [1]), _plan(images_uri))
        assert fetched["status"].to_pylist() == ["missing_image"]
    else:
        with pytest.raises(FileNotFoundError):
            storage.read_bytes(images_uri)
    assert _CutRefusal.num_asked == 2


@pytest.mark.parametrize("server", [_Refuse], indirect=True)
def test_photos_that_are_refused_one_by_one_are_no_outage(
    impatient: None, server: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = _fetch_from(server, monkeypatch, 2 * OUTAGE_FAILURES)
    assert set(errors) == {"GenericError: status code: 400 Bad Request"}


class _Expired(_Refuse):
    """Refuses every request for what has nothing to do with its object."""

    status, code = 400, "ExpiredToken"

    def do_GET(self) -> None:
        body = f"<Error><Code>{self.code}</Code></Error>".encode()
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class _Skewed(_Expired):
    status, code = 403, "RequestTimeTooSkewed"


@pytest.mark.parametrize("server", [_Expired, _Skewed], indirect=True)
def test_credentials_that_expire_are_no_fault_of_the_photos(
    impatient: None, server: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(GateError, match=r"stopped delivering: .*(ExpiredToken|RequestTimeTooSkewed).*, like 15 photos"):
        _fetch_from(server, monkeypatch, OUTAGE_FAILURES)
    uris = [f"s3://bucket-{uuid.uuid4().hex[:8]}/{number}.json" for number in range(OUTAGE_FAILURES)]
    with pytest.raises(StorageOutage, match=r"ExpiredToken|RequestTimeTooSkewed") as raised:
        read_records(uris, anonymous=False)
    assert type(raised.value) is StorageOutage


class _Breaking(_Refuse):
    """Every answer breaks off half-way; what is asked for after that, at once."""

    num_asked = 0

    def do_GET(self) -> None:
        type(self).num_asked += 1
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-99999/100000")
        self.send_header("ETag", '"e"')
        self.send_header("Last-Modified", "Sat, 28 Nov 2026 10:00:00 GMT")
        self.send_header("Content-Length", str(100_000 - start))
        self.end_headers()
        self.wfile.write(b" " * max(0, 50_000 - start))
        self.close_connection = True


@pytest.mark.parametrize("server", [_Breaking], indirect=True)
@pytest.mark.parametrize("reader", ["photo", "bytes"])
def test_an_object_that_always_breaks_off_is_given_up_in_time(
    server: int, reader: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(s3.RETRIES, "retry_timeout", timedelta(seconds=2))
    images_uri = f"s3://bucket-{uuid.uuid4().hex[:8]}/images"
    started = time.monotonic()
    if reader == "photo":
        assert _fetch_from(server, monkeypatch, 1)[0].startswith("given up: ")
    else:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server}")
        with pytest.raises(GateError, match="can't be read"):
            storage.read_bytes(images_uri)
    assert _Breaking.num_asked > 2
    assert time.monotonic() - started < 8


@pytest.mark.parametrize("server", [None, _Refuse], indirect=True)
def test_training_waits_for_a_storage_that_is_away_and_not_for_a_photo_that_it_refuses(
    impatient: None, server: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server or free_port()}")
    images_uri = f"s3://bucket-{uuid.uuid4().hex[:8]}/images"
    photos = manifest_table(images_uri, [1])
    checked = _check_batch(photos, _plan(images_uri))
    assert (checked["status"].to_pylist(), checked["gave_up"].to_pylist()) == (["fetch_failed"], [server is None])


@pytest.mark.parametrize(("code", "gave_up"), [(5, True), (116, True), (20, False), (36, False), (40, False)])
def test_a_disk_that_fails_is_a_storage_that_is_away(
    code: int, gave_up: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        async def get_async(self, key: str, *, options: object) -> None:
            raise GenericError(
                f"Generic LocalFileSystem error: Unable to open file {key}: so it goes (os error {code})"
            )

    monkeypatch.setattr(storage, "locate", lambda uri, anonymous: (Broken(), uri))
    found = asyncio.run(fetch_allowed(str(tmp_path / "a.jpg"), _plan(str(tmp_path))))
    assert isinstance(found, Photo)
    assert (found.status, found.gave_up) == ("fetch_failed", gave_up)


def test_a_local_name_that_can_not_be_read_is_no_outage(tmp_path: Path) -> None:
    for number in range(OUTAGE_FAILURES):
        (tmp_path / f"bin#{number}").write_bytes(photo(1, 1))
    rows = manifest_table(str(tmp_path), [1] * OUTAGE_FAILURES)
    names = pa.array([f"{tmp_path}/bin#{number}" for number in range(OUTAGE_FAILURES)])
    fetched = fetch_rows(
        rows.set_column(rows.schema.get_field_index("image_uri"), "image_uri", names), _plan(str(tmp_path))
    )
    assert set(fetched["status"].to_pylist()) == {"image_rejected"}
    assert set(fetched["error"].to_pylist()) == {"a name that ends in # and digits; rename the file"}


def test_photos_wait_for_a_source_of_credentials_that_is_away(impatient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    class Unsigned:
        num_asked = 0

        async def get_async(self, key: str, *, options: object) -> None:
            self.num_asked += 1
            raise UnauthenticatedError("External AWS credential provider failed: EndpointConnectionError")

    store = Unsigned()
    monkeypatch.setattr(storage, "locate", lambda uri, anonymous: (store, uri))

    async def at_once(seconds: float) -> None: ...

    monkeypatch.setattr(fetching.asyncio, "sleep", at_once)
    found = asyncio.run(fetch_allowed("s3://bucket/images/1.jpg", _plan("s3://bucket/images")))
    assert isinstance(found, Photo)
    assert (found.status, found.gave_up, store.num_asked) == ("fetch_failed", True, storage.CUT_TRIES)
    assert found.error is not None and "EndpointConnectionError" in found.error


def test_folders_named_like_photos_fail_at_once(tmp_path: Path) -> None:
    count = 2 * OUTAGE_FAILURES
    for number in range(count):
        (tmp_path / f"{number:05d}.jpg").mkdir()
    fetched = fetch_rows(manifest_table(str(tmp_path), [1] * count), _plan(str(tmp_path)))
    assert set(fetched["status"].to_pylist()) <= {"fetch_failed", "missing_image"}


@pytest.mark.ray
def test_a_photo_the_bundle_has_learned_from_is_recognised(ray_cluster: None, tmp_path: Path) -> None:
    import ray

    storage.write_bytes(f"{tmp_path}/00000.jpg", photo(1, 1))
    storage.write_bytes(f"{tmp_path}/00001.jpg", photo(2, 2))
    digest = np.frombuffer(hashlib.sha256(photo(2, 2)).digest(), np.uint8).reshape(1, 32)
    plan = FetchPlan(PREPROCESSING, (str(tmp_path),), False, ray.put(digest))
    assert fetch_rows(manifest_table(str(tmp_path), [1, 2]), plan)["training_photo"].to_pylist() == [False, True]


@pytest.mark.s3
def test_a_photo_that_changed_since_it_was_listed_is_not_scored(bucket: str) -> None:
    storage.write_bytes(f"{bucket}/images/00000.jpg", photo(1, 1))
    listed = next(iter(storage.list_objects(f"{bucket}/images")))
    same = manifest_table(f"{bucket}/images", [1], image_etag=[listed.etag])
    assert fetch_rows(same, _plan(f"{bucket}/images"))["status"].to_pylist() == ["scored"]
    storage.write_bytes(f"{bucket}/images/00000.jpg", photo(5, 9))
    fetched = fetch_rows(same, _plan(f"{bucket}/images"))
    assert fetched["status"].to_pylist() == ["fetch_failed"]
    assert "changed since it was listed" in fetched["error"][0].as_py()


def test_a_local_photo_of_another_size_than_was_listed_is_not_scored(tmp_path: Path) -> None:
    data = photo(1, 1)
    storage.write_bytes(f"{tmp_path}/00000.jpg", data)
    listed = manifest_table(str(tmp_path), [1], image_etag=["of a folder that was copied"], image_bytes=[len(data)])
    assert fetch_rows(listed, _plan(str(tmp_path)))["status"].to_pylist() == ["scored"]
    storage.write_bytes(f"{tmp_path}/00000.jpg", data + b"\0")  # the next night's
    unknown = manifest_table(str(tmp_path), [1], image_bytes=[len(data)])  # by an inventory of yesterday
    assert fetch_rows(unknown, _plan(str(tmp_path)))["status"].to_pylist() == ["scored"]
    fetched = fetch_rows(listed, _plan(str(tmp_path)))
    assert fetched["status"].to_pylist() == ["fetch_failed"]
    assert "changed since it was listed" in fetched["error"][0].as_py()


@pytest.mark.parametrize("which", [[], [True, False, True, True], [False, False], [True]], ids=str)
def test_pixels_reach_arrow_as_they_are(which: list[bool]) -> None:
    random = np.random.default_rng(1)
    photos = [random.integers(0, 256, (16, 16, 3), dtype=np.uint8) if there else None for there in which]
    column = _pixels_column(photos)
    column.validate(full=True)
    assert column.to_pylist() == [None if photo is None else photo.tobytes() for photo in photos]


@pytest.mark.parametrize(
    ("code", "told"), [("AccessDenied", "access denied"), ("InvalidObjectState", "access denied (InvalidObjectState)")]
)
def test_what_s3_forbids_for_another_reason_is_told(code: str, told: str) -> None:
    """Such as a photo that was archived."""
    assert fetching._denied(PermissionDeniedError(f"403 Forbidden: <Error><Code>{code}</Code></Error>")) == told


@pytest.mark.parametrize("colour", [(0, 0, 0), (128, 128, 128), (255, 255, 255), (180, 90, 40)])
def test_a_blank_frame_has_no_contrast_whatever_its_brightness_and_colour(colour: tuple[int, int, int]) -> None:
    assert measure_contrast(np.full((32, 32, 3), colour, np.uint8)) == 0


@pytest.mark.parametrize("side", [32, 224])
def test_a_blank_jpeg_is_below_the_limit_and_an_empty_bin_above(side: int) -> None:
    sink = io.BytesIO()
    Image.new("RGB", (468, 334), (180, 90, 40)).save(sink, "JPEG")
    blank, empty = (decode_image(data, Preprocessing(image_size=side)) for data in (sink.getvalue(), photo(0, 1)))
    assert measure_contrast(blank) < MIN_CONTRAST / 4
    assert measure_contrast(empty) > 1.5 * MIN_CONTRAST


def test_contrast_is_the_deviation_of_grey() -> None:
    grey = np.random.default_rng(0).integers(0, 256, (32, 32, 1), dtype=np.uint8)
    assert measure_contrast(np.repeat(grey, 3, axis=2)) == pytest.approx(grey.std(), rel=1e-4)
