"""Which planned bin a row of a counts file names, after spreadsheets and data frames have had their way with its bin_id."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Set
from typing import Any

import pyarrow as pa

from jobs.counting.count_rows import CountRow, Reject
from jobs.platform.texts import csv_text
from schemas.recount import RejectReason

Plan = Mapping[str, dict[str, Any]]
"""bin_id -> row of PLANNED_SCHEMA, with the run_id and when that run began."""

_NUMBER = re.compile(r"0*(?P<whole>0|[1-9][0-9]*)(?:(?P<decimals>\.[0-9]*[1-9])0*|\.0+)?", re.ASCII)


def list_names(plans: Mapping[str, list[Plan]]) -> dict[tuple[str, str], str]:
    """(night, text) -> bin_id, for texts by which the recount list shows a bin lest its bin_id become a formula."""
    names: dict[tuple[str, str], str] = {}
    for night, of_night in plans.items():
        bin_ids = sorted({bin_id for plan in of_night for bin_id in plan})
        for bin_id, text in zip(bin_ids, csv_text(pa.array(bin_ids, pa.string())).to_pylist(), strict=True):
            names.setdefault((night, text.strip()), bin_id)
        names.update({(night, bin_id): bin_id for bin_id in bin_ids})
    return names


def list_numbers(plans: Mapping[str, list[Plan]]) -> tuple[dict[tuple[str, str], str], set[tuple[str, str]]]:
    """(night, text) -> bin_id, for bins such as 00004 or 1.10, which a spreadsheet takes for the numbers 4 and 1.1, where one
    planned bin can be meant; and the (night, text) by which several can."""
    numbers: dict[tuple[str, str], str] = {}
    alike: set[tuple[str, str]] = set()
    for night, of_night in plans.items():
        bin_ids = {bin_id for plan in of_night for bin_id in plan if _NUMBER.fullmatch(bin_id)}
        meant = Counter(map(_number, bin_ids))
        numbers.update({(night, _number(bin_id)): bin_id for bin_id in bin_ids if meant[_number(bin_id)] == 1})
        alike |= {(night, number) for number, times in meant.items() if times > 1}
    return numbers, alike


def has_kept_zeros(bin_ids: Set[str]) -> bool:
    """Whether a file has one that a spreadsheet would have taken away. `2.0` alone is how a data frame writes each 2."""
    numbers = {bin_id: _number(bin_id) for bin_id in bin_ids}
    return any(
        bin_id != number and (bin_id != f"{number}.0" or number in bin_ids) for bin_id, number in numbers.items()
    )


def as_number(count: CountRow) -> tuple[str, str]:
    """Night and bin as `list_numbers` has them."""
    whole = count.bin_id.removesuffix(".0")
    return count.audit_date, whole if whole.isdecimal() else count.bin_id


def _number(bin_id: str) -> str:
    """What a spreadsheet makes of it: a number loses the zeros in front and those at the end of its decimals."""
    number = _NUMBER.fullmatch(bin_id)
    return number["whole"] + (number["decimals"] or "") if number else bin_id


def check_distinct(count: CountRow, alike: Set[tuple[str, str]]) -> None:
    """Raises Reject for a number that may be one of several planned bins, in a file that may have lost its zeros."""
    if as_number(count) in alike:
        detail = (
            f"bin_id: planned bins differ from {count.bin_id} in zeros only, in front or after the decimals, and no bin_id in "
            "the file has one, as after a spreadsheet; hand it in with bin_id as text (an empty row of one with zeros shows "
            "that none are lost)"
        )
        raise Reject(RejectReason.UNKNOWN_BIN, detail)
