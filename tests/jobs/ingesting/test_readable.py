from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.ingesting import readable
from jobs.ingesting.readable import Probe, check_readable, probe, unfetched_error
from jobs.ingesting.records import StorageOutage
from schemas.errors import GateError, InputError
from tests.ingested import matched_bins, write_records


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_records(tmp_path)


def test_a_probe_ends_at_the_first_record_that_can_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.ingesting.readable.REQUESTS_IN_FLIGHT", 2)
    assert probe(matched_bins(folder, "good"), False).readable
    assert probe(matched_bins(folder, "bad", "bad2", "good"), False).readable
    none = probe(matched_bins(folder, "bad", "gone1", "gone2", "gone3", "loop"), False)
    assert not none.readable
    assert (none.num_unfetched, len(none.unfetched), len(none.unreadable)) == (1, 1, 3)
    with pytest.raises(GateError, match="away; nothing was written"):
        monkeypatch.setattr("jobs.ingesting.readable.read_records", _raise_outage)
        probe(matched_bins(folder, "good"), False)


def _raise_outage(uris: list[str], *, anonymous: bool) -> None:
    raise StorageOutage("away")


@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_record_that_can_be_read_is_enough_wherever_it_stands(place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        readable, "_probe", SimpleNamespace(remote=lambda part, anonymous: Probe(readable=part == place))
    )
    monkeypatch.setattr(readable.ray, "get", lambda probes: probes)
    target: Any = SimpleNamespace(anonymous=False, images_uri="s3://b/images")
    check_readable([0, 1, 2], target)
    with pytest.raises(InputError, match="no image has a readable record"):
        check_readable([3, 4, 5], target)


def test_the_message_counts_the_records_that_did_not_come_and_names_the_first() -> None:
    message = str(
        unfetched_error(1234, [f"s3://b/{number}.json: access denied" for number in range(9)], "not complete")
    )
    assert "1,234 records could not be fetched; not complete, run the same command again" in message
    assert "s3://b/0.json" in message and "s3://b/2.json" in message and "s3://b/3.json" not in message
