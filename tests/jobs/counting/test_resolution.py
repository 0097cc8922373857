from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from jobs.counting.resolution import Count, Finding, resolve_counts

START = datetime(2026, 3, 3, 8, tzinfo=UTC)


@pytest.mark.parametrize(
    ("quantities", "finding"),
    [
        ([], None),
        ([3], Finding(3, resolved=True)),
        ([3, 3], Finding(3, resolved=True)),
        ([2], Finding(2, resolved=False)),
        ([2, 4], Finding(2, resolved=False)),
        ([2, 3], Finding(3, resolved=True)),
        ([3, 2], Finding(3, resolved=True)),
        ([2, 4, 3], Finding(3, resolved=True)),
        ([2, 3, 3], Finding(3, resolved=True)),
        ([2, 3, 2], Finding(2, resolved=True)),
        ([2, 2], Finding(2, resolved=True)),
        ([2, 2, 4, 4], Finding(4, resolved=True)),
        ([2, 4, 4, 2], Finding(2, resolved=True)),
    ],
)
def test_a_mismatch_needs_two_people_who_agree(quantities: list[int], finding: Finding | None) -> None:
    counts = [Count(START + timedelta(hours=hour), qty, f"person {hour}") for hour, qty in enumerate(quantities)]
    assert resolve_counts(counts, 3) == finding
    assert resolve_counts(counts[::-1], 3) == finding


@pytest.mark.parametrize("counters", [("kim", "kim"), (None, None), ("kim", None), (None, "kim")])
def test_nobody_confirms_what_they_counted_themselves(counters: tuple[str | None, ...]) -> None:
    counts = [Count(START + timedelta(hours=hour), 2, counter) for hour, counter in enumerate(counters)]
    assert resolve_counts(counts, 3) == Finding(2, resolved=False)
    counts.append(Count(START + timedelta(hours=2), 2, "lee"))
    assert resolve_counts(counts, 3) == Finding(2, resolved="kim" in counters)
    right = [Count(START, 3, counter) for counter in counters]
    refuted = [Count(START, 2, counters[0]), Count(START + timedelta(hours=1), 3, counters[1])]
    assert resolve_counts(refuted, 3) == Finding(2, resolved=False), "the same person, or nobody knows who"
    assert resolve_counts(right, 3) == Finding(3, resolved=True), "a count that agrees with the record needs no other"


def test_a_mismatch_that_its_counter_took_back_is_not_the_one_that_waits() -> None:
    kim = [Count(START + timedelta(hours=hour), qty, "kim") for hour, qty in enumerate((2, 3))]
    assert resolve_counts([*kim, Count(START + timedelta(hours=2), 5, "ann")], 3) == Finding(5, resolved=False)


def test_a_confirmed_mismatch_needs_no_other_count() -> None:
    assert resolve_counts([Count(START, 2, confirmed=True)], 3) == Finding(2, resolved=True)
