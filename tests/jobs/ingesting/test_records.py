from __future__ import annotations

from pathlib import Path

import pytest
from obstore.exceptions import GenericError, PermissionDeniedError

from jobs.ingesting import records
from jobs.ingesting.records import UNREADABLE, StorageOutage, read_records, record_columns
from jobs.platform import storage
from jobs.platform.fetching import OUTAGE_FAILURES, Fault, NotFetched
from schemas.abid import BinRecord, SkuLine, UnreadableRecord
from tests.ingested import write_records


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_records(tmp_path)


def test_a_record_that_does_not_come_is_no_unreadable_one_and_a_storage_that_is_away_is_an_outage(folder: Path) -> None:
    uris = [str(folder / f"{name}.json") for name in ("good", "bad", "gone", "loop")]
    good, bad, gone, loop = read_records(uris, anonymous=False)
    assert getattr(good, "expected_qty", None) == 2
    assert isinstance(bad, UnreadableRecord)
    assert isinstance(gone, UnreadableRecord) and "found it gone" in str(gone)
    assert isinstance(loop, NotFetched) and loop.fault not in UNREADABLE
    with pytest.raises(StorageOutage, match=r"can't be fetched: .*loop\.json: .*, like 15 others"):
        read_records([uris[-1]] * 20, anonymous=False)


def test_a_record_that_is_denied_is_no_unreadable_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _serve_with(PermissionDeniedError("no"), monkeypatch)
    (found,) = read_records([str(folder / "good.json")], anonymous=False)
    assert isinstance(found, NotFetched) and str(found) == "access denied"
    with pytest.raises(StorageOutage, match="access denied, like 15 others"):
        read_records([str(folder / "good.json")] * 16, anonymous=False)


@pytest.mark.parametrize("between", ["good", "bad"])
def test_failures_are_an_outage_only_in_a_row(folder: Path, monkeypatch: pytest.MonkeyPatch, between: str) -> None:
    monkeypatch.setattr(records, "REQUESTS_IN_FLIGHT", 1)
    uris = [str(folder / f"{name}.json") for name in ("loop", between)]
    found = read_records(uris * OUTAGE_FAILURES, anonymous=False)
    assert sum(isinstance(reason, NotFetched) for reason in found) == OUTAGE_FAILURES


def _serve_with(error: Exception, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every request ends with `error`. Returns the keys that were asked for."""
    asked: list[str] = []

    class Failing:
        async def get_async(self, key: str, **options: object) -> None:
            asked.append(key)
            raise error

    monkeypatch.setattr(storage, "locate", lambda uri, anonymous: (Failing(), uri))
    return asked


def test_a_record_that_storage_gave_up_on_is_not_asked_for_all_over_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = _serve_with(GenericError("Error after 9 retries in 120s: 503"), monkeypatch)
    (found,) = read_records(["s3://bins/1.json"], anonymous=False)
    assert isinstance(found, NotFetched) and found.fault is Fault.GAVE_UP
    assert len(asked) == 1


def test_a_key_that_is_no_path_is_an_unreadable_record(tmp_path: Path) -> None:
    uris = [f"{tmp_path}/a\tb.json", "s3://bins/a//b.json", "s3://bins/a/../b.json"]
    found = read_records(uris, anonymous=False)
    assert [str(reason) for reason in found] == [
        "expected a valid key, found one with empty parts or control characters"
    ] * len(uris)


def test_a_record_s_line_of_no_pieces_is_no_further_sku() -> None:
    record = BinRecord(2, (SkuLine("A", None, 2), SkuLine("B", None, 0)), inconsistent=False)
    columns = record_columns([record])
    assert (columns["num_skus"].to_pylist(), columns["sku"].to_pylist()) == ([1], ["A"])
