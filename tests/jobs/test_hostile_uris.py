"""What a manifest may name as a photo: anything, and nothing outside the allowed roots is ever opened."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.platform.roots import is_allowed
from jobs.platform.uris import UNSTORABLE, absolute
from jobs.stages.images import FetchPlan, fetch_rows
from jobs.stages.manifest import settle_roots
from schemas.bundle import Preprocessing
from tests.dump import manifest_table, photo

OUTSIDE = [
    "file:///etc/passwd",
    "file://localhost/etc/passwd",
    "FILE:///etc/passwd",
    "/etc/passwd",
    "//etc/passwd",
    "~/.aws/credentials",
    "~root/.bashrc",
    "~nobody-of-this-name/secret",
    "{root}/../secret.jpg",
    "{root}/./../secret.jpg",
    "file://{root}/%2e%2e/secret.jpg",
    "{root}-other/00000.jpg",
    "{root}/\0.jpg",
    "{root}/" + "../" * 500 + "etc/passwd",
    "/" + "a" * 100_000,
    "s3://bins/bin-images/00000.jpg",
    "s3:///etc/passwd",
    "s3://",
    "s3://169.254.169.254/latest/meta-data",
    "http://169.254.169.254/latest/meta-data/iam/security-credentials/",
    "http://[fe80::1]/",
    "https://example.com/00000.jpg",
    "gs://bins/00000.jpg",
    "data:image/jpeg;base64,/9j/4AAQ",
    "\\\\server\\share\\00000.jpg",
    "/proc/self/environ",
    "/dev/zero",
]
INSIDE_BUT_NO_PHOTO = [
    "{root}",
    "{root}/",
    "{root}/folder",
    "{root}/new\nline.jpg",
    "{root}/\x7f.jpg",
    "{root}/" + "a" * 5000,
    "{root}/\u202e.jpg",
]

segments = st.sampled_from(
    ["..", ".", "", "~", "a", "%2e%2e", "\0", "secret.jpg", "bin-images", "~x", "\n", "é"]
) | st.text(max_size=5)


@pytest.fixture
def root(tmp_path: Path) -> str:
    folder = tmp_path / "bin-images"
    (folder / "folder").mkdir(parents=True)
    (folder / "00000.jpg").write_bytes(photo(1, 1))
    (tmp_path / "secret.jpg").write_bytes(photo(2, 2))
    return str(folder)


def statuses(root: str, uris: list[str]) -> dict[str, str]:
    uris = [uri.replace("{root}", root) for uri in uris]
    rows = manifest_table(root, [1] * len(uris), image_uri=uris)
    fetched = fetch_rows(rows, FetchPlan(Preprocessing(image_size=32), (root,), False, None))
    return dict(zip(uris, fetched["status"].to_pylist(), strict=True))


def test_what_lies_outside_the_roots_is_rejected(root: str) -> None:
    found = statuses(root, [*OUTSIDE, "{root}/00000.jpg"])
    assert found.pop(f"{root}/00000.jpg") == "scored"
    assert {uri: status for uri, status in found.items() if status != "image_rejected"} == {}


def test_what_is_no_photo_has_a_status_and_loses_no_other(root: str) -> None:
    found = statuses(root, [*INSIDE_BUT_NO_PHOTO, "{root}/00000.jpg"])
    assert found.pop(f"{root}/00000.jpg") == "scored"
    assert set(found.values()) <= {"missing_image", "fetch_failed", "image_rejected", "unreadable_image"}


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(segments, max_size=6), st.sampled_from(["{root}/", "file://{root}/", "", "/", "s3://bins/", "s3://"]))
def test_a_uri_is_allowed_where_it_does_not_lead_out(root: str, parts: list[str], start: str) -> None:
    uri = start.replace("{root}", root) + "/".join(parts)
    allowed = is_allowed(uri, (root,))
    if allowed:
        assert os.path.realpath(absolute(uri)).startswith(root + "/")
    if start == "{root}/" and not UNSTORABLE.search(uri) and "://" not in uri:  # no link lies below it
        assert allowed == os.path.normpath(uri).startswith(root + "/")


@given(st.lists(segments, max_size=6))
def test_a_key_is_allowed_where_it_stays_in_its_folder(parts: list[str]) -> None:
    key = "/".join(parts)
    stays = {"", ".", ".."}.isdisjoint(key.split("/"))
    assert is_allowed(f"s3://bins/bin-images/{key}", ("s3://bins/bin-images",)) == stays


def test_given_roots_stand_instead_of_the_manifests_own() -> None:
    assert settle_roots("m", "/photos", ("/given",)) == ("/given",)
    assert settle_roots("m", "/photos", ()) == ("/photos",)
