"""The cells of one row of a counts file, parsed; what can be rejected without knowing any plan is rejected here."""

from __future__ import annotations

import re
from collections.abc import Set
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from jobs.counting.counts_file import REQUIRED, CountsRow
from jobs.counting.resolution import Count, person
from schemas.arrow import MAX_QUANTITY
from schemas.manifest import NIGHT_YEARS
from schemas.recount import RejectReason

SOON = timedelta(days=26)
"""After its night a bin is counted within; only where a date can be two days does that tell which it is. Day and month
the wrong way round make at least 27 days of the same day, less ZONE_SLACK."""
CLOCK_SLACK = timedelta(minutes=10)
"""Clocks of handhelds may run so far ahead."""
ZONE_SLACK = timedelta(hours=14)
"""A night's date is the warehouse's own, and the easternmost zone is so far ahead of UTC."""
_FLAGS = {"": None, "true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
NO_NAME = {"NULL", "null", "NaN", "nan", "None", "<NA>", "N/A", "n/a"}
"""What databases and data frames write for no name, letter by letter: Nan is a person."""
_SHORTENED = re.compile(r"[0-9]([.,][0-9]+)?e\+[0-9]+")
"""How spreadsheets show a number of many digits, 1.23457E+11, after `person`: others look the same."""
_QUANTITY = re.compile(r"\+?([0-9]{1,10})(\.0{0,2})?")
"""Not `1.000`, which is a thousand where thousands are parted by dots."""
_SPREADSHEET_DATE = re.compile(
    r"(?:(?P<year>[0-9]{4})[-/](?P<month>[0-9]{1,2})[-/](?P<day>[0-9]{1,2})"
    r"|(?P<left>[0-9]{1,2})(?P<sign>[./-])(?P<right>[0-9]{1,2})(?P=sign)(?P<year_last>[0-9]{4}))"
    r"(?:[ T]+(?P<hour>[0-9]{1,2}):(?P<minute>[0-9]{2})(?::(?P<second>[0-9]{2}))?(?:\s?(?P<half>[AaPp][Mm]))?)?"
)
"""What spreadsheets make of a date: `2026-11-23 8:15`, `23.11.2026 08:15`, `11/23/2026 8:15 AM`, `23-11-2026`. But
11/12/2026 is two days."""


class Reject(ValueError):  # noqa: N818 - the domain's word
    """A row that isn't taken in, and why."""

    def __init__(self, reason: RejectReason, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class CountRow:
    """One person's count of one bin, for one night's plan."""

    source: CountsRow
    bin_id: str
    audit_date: str
    count: Count
    latest: datetime
    """`count.counted_at`; where that is a day without a time, its first moment, this is the last."""
    confirmed: bool | None
    reason_code: str | None


def parse_row(row: CountsRow, nights: Set[str], zone: ZoneInfo, now: datetime) -> CountRow:
    """Raises Reject. A time without an offset is a time in `zone`. An `audit_date` that may be two days, as 11/12/2026 may,
    is the one that is among the committed `nights` and SOON before the count, both dates being in one order; a
    `counted_at` that may be two is the one SOON after its night."""
    if row.malformed is not None:
        raise Reject(RejectReason.MALFORMED_ROW, row.malformed)
    for name in REQUIRED:
        if not row.cells[name]:
            raise Reject(RejectReason.MISSING_VALUE, f"{name}: expected a value, found none")
    night, orders = _parse_night(row.cells["audit_date"], row.cells["counted_at"], nights, zone)
    # a plain audit_date leaves open how the other one was written
    orders = {order for order in orders if _is_soon_after(night, row.cells["counted_at"], order, zone)} or orders
    counted_at, latest = _parse_time(row.cells["counted_at"], orders, zone)
    if counted_at > now + CLOCK_SLACK:
        raise Reject(RejectReason.IN_FUTURE, f"counted_at: {_show(counted_at)} is yet to come; see --time-zone")
    if counted_at < datetime.combine(night, time(), UTC) - ZONE_SLACK:
        raise Reject(RejectReason.BEFORE_NIGHT, f"counted_at: {_show(counted_at)} is before the night {night}")
    flag = row.cells.get("confirmed", "").lower()
    if flag not in _FLAGS:
        raise Reject(RejectReason.BAD_FLAG, f"confirmed: expected true, false or nothing, found {flag!a}")
    quantity = _parse_quantity(row.cells["counted_qty"])
    written = row.cells.get("counter_id")
    counter_id = None if written in NO_NAME else person(written)
    if counter_id is not None and _SHORTENED.fullmatch(counter_id):
        detail = f"counter_id: expected who counted, found {written!a}, which a spreadsheet made of a number"
        raise Reject(RejectReason.BAD_COUNTER, f"{detail}; import counter_id as text")
    return CountRow(
        source=row,
        bin_id=row.cells["bin_id"],
        audit_date=night.isoformat(),
        count=Count(counted_at, quantity, counter_id, _FLAGS[flag] is True),
        latest=latest,
        confirmed=_FLAGS[flag],
        reason_code=row.cells.get("reason_code") or None,
    )


def _parse_night(text: str, counted_at: str, nights: Set[str], zone: ZoneInfo) -> tuple[date, Set[bool]]:
    """With the orders that make `text` this night, see `_read_moments`."""
    moments = _read_moments(text)
    days = {order: moment.date().isoformat() for order, moment in moments.items()}
    orders: Set[bool] = days.keys()
    if len(set(days.values())) > 1:
        orders = {
            order
            for order, day in days.items()
            if day in nights and _is_soon_after(date.fromisoformat(day), counted_at, order, zone)
        }
    possible = {days[order] for order in orders}
    if len(possible) != 1:
        hint = f": {'both' if possible else 'neither'} may be the committed night of this count" if days else ""
        detail = f"audit_date: expected YYYY-MM-DD or DD.MM.YYYY, found {_show_found(text, set(days.values()))}{hint}"
        raise Reject(RejectReason.BAD_DATE, detail)
    if any(moment.time() != time() for moment in moments.values()):
        detail = f"audit_date: expected a night without a time of day, found {text!a}"
        raise Reject(RejectReason.BAD_DATE, detail)
    night = date.fromisoformat(possible.pop())
    if night.year not in NIGHT_YEARS:
        years = f"{NIGHT_YEARS[0]} to {NIGHT_YEARS[-1]}"
        raise Reject(RejectReason.BAD_DATE, f"audit_date: expected a night of the years {years}, found {text!a}")
    return night, orders


def _is_soon_after(night: date, counted_at: str, month_first: bool, zone: ZoneInfo) -> bool:
    try:
        counted, _ = _parse_time(counted_at, {month_first}, zone)
    except Reject:
        return False
    return -ZONE_SLACK <= counted - datetime.combine(night, time(), UTC) <= SOON


def _read_moments(text: str) -> dict[bool, datetime]:
    """What `text` says where the day stands first (False) and where the month does (True): the same where that is
    plain, nothing where it is no date."""
    moments = {}
    for month_first in (False, True):
        with suppress(ValueError):
            moments[month_first] = _read_moment(text, month_first)
    return moments


def _read_moment(text: str, month_first: bool) -> datetime:
    """Raises ValueError."""
    match = _SPREADSHEET_DATE.fullmatch(text)
    if match is None:
        return datetime.fromisoformat(text)
    names = ("year", "month", "day") if match["year"] else ("year_last", "right", "left")
    year, month, day = map(int, match.group(*names))
    if month_first and match["sign"] in ("/", "-"):
        month, day = day, month
    hour, minute, second = (int(value or 0) for value in match.group("hour", "minute", "second"))
    if match["half"]:
        if not 1 <= hour <= 12:
            raise ValueError(f"no hour of half a day: {hour}")
        hour = hour % 12 + (12 if match["half"].lower() == "pm" else 0)
    return datetime(year, month, day, hour, minute, second)


def _parse_time(text: str, orders: Set[bool], zone: ZoneInfo) -> tuple[datetime, datetime]:
    """The first and the last moment that `text` can mean. `orders`: those that the row's night allows."""
    moments = {moment for order, moment in _read_moments(text).items() if order in orders}
    try:
        (moment,) = moments
        moment = moment if moment.tzinfo else moment.replace(tzinfo=zone)
        is_day = moment.time() == time()  # a timestamp column holds a day so too
        latest = datetime.combine(moment, time.max, moment.tzinfo) if is_day else moment
        return moment.astimezone(UTC), latest.astimezone(UTC)
    except (ValueError, OverflowError):
        found = _show_found(text, {moment.date().isoformat() for moment in moments})
        detail = f"counted_at: expected a time such as 2026-11-23T08:15:00+01:00, found {found}"
        raise Reject(RejectReason.BAD_DATE, detail) from None


def _show_found(text: str, days: Set[str]) -> str:
    return f"{text!a}, which is {' or '.join(sorted(days))}" if len(days) > 1 else f"{text!a}"


def _parse_quantity(text: str) -> int:
    if re.fullmatch(r"-[0-9]+(\.[0-9]*)?", text):
        raise Reject(RejectReason.NEGATIVE_QUANTITY, f"counted_qty: expected 0 or more, found {text!a}")
    match = _QUANTITY.fullmatch(text)
    if match is None or int(match[1]) > MAX_QUANTITY:
        raise Reject(
            RejectReason.BAD_QUANTITY,
            f"counted_qty: expected a whole number of at most {MAX_QUANTITY:,}, found {text!a}",
        )
    return int(match[1])


def _show(moment: datetime) -> str:
    return moment.isoformat(timespec="minutes")
