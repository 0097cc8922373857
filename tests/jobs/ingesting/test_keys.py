from __future__ import annotations

from pathlib import Path

import pytest

from jobs.ingesting import keys
from jobs.ingesting.keys import Folder


def test_a_listing_is_not_begun_anew_half_way() -> None:
    assert keys.list_keys._default_options["max_retries"] == 0


def test_a_listing_of_several_chunks_keeps_every_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "CHUNK_ROWS", 2)
    stems = [f"{number:05d}" for number in range(5)]
    for stem in stems:
        (tmp_path / f"{stem}.jpg").write_bytes(b"photo")
    found = list(keys.list_keys._function(Folder(str(tmp_path), (".jpg",))))
    assert [info.num_rows for info in found[::2]] == [2, 2, 1]
    assert sorted(key for table in found[1::2] for key in table["key"].to_pylist()) == stems


def test_an_object_that_is_all_suffix_is_no_photo() -> None:
    assert [keys.find_stem(uri, (".jpg",)) for uri in ("s3://b/.jpg", "s3://b/1.JPG", "s3://b/jpg")] == [
        None,
        "1",
        None,
    ]
