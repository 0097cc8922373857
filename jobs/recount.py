"""Takes in counted bins: checks each, adds them to counted/, and says what was learned.

    python -m jobs.recount --output-uri demo/audits --counts-uri counts.csv

    ray job submit --working-dir . -- python -m jobs.recount --output-uri s3://stock/audits \
        --counts-uri s3://stock/counts/2026-11-23.csv

Writes below --output-uri: one Parquet file in counted/ with the rows taken in (nothing for rows taken in before, so the
same file twice is harmless), and count_rejects/<hash>.csv with those that were not. Nothing there is ever changed.
Exit codes: 0 every row is taken in, 1 some were rejected (the others are taken in) or what was learned can't be said,
2 the file can't be read.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from jobs.config.recount import RecountConfig
from jobs.counting.belief import learn_record_model, read_class_shares
from jobs.counting.check import CheckedCounts, check_counts
from jobs.counting.counted import add_counted
from jobs.counting.counts_file import read_counts_file, write_rejects
from jobs.counting.estimates import UNRESOLVED, estimate_window
from jobs.counting.history import History, day_after, read_history
from jobs.platform.command import run_command
from jobs.platform.layout import list_nights
from jobs.platform.provenance import provenance
from jobs.platform.uris import absolute
from model.record_model import RecordModel
from schemas.errors import GateError, InputError

SHOWN = 5


def run_recount(config: RecountConfig) -> None:
    """The whole job. Raises InputError (nothing was taken in) or GateError (some rows were not, or what was learned from
    those that were can't be said)."""
    output_uri = absolute(config.output_uri)
    nights = list_nights(output_uri)
    if not nights:
        raise InputError(f"{output_uri}: expected the output of jobs.audit, found no committed night")
    try:
        zone = ZoneInfo(config.time_zone)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:  # OSError: a folder of zones, such as Europe
        raise InputError(f"--time-zone: expected a name such as Europe/Berlin, found {config.time_zone!r}") from error
    rows = read_counts_file(absolute(config.counts_uri))
    checked = check_counts(output_uri, nights, rows, zone=zone, now=datetime.now(UTC))
    print(f"rows: {len(rows)}; taken in: {checked.accepted.num_rows}; known already: {checked.num_known}", end="; ")
    print(f"not filled in: {checked.num_blank}; rejected: {len(checked.rejects)}")
    if checked.accepted.num_rows:
        made = {"config": config.model_dump(mode="json"), **provenance()}  # the time zone decides every counted_at
        print(
            f"written: {add_counted(output_uri, checked.accepted.replace_schema_metadata({'made': json.dumps(made)}))}"
        )
    elif checked.num_known and not checked.rejects:
        print("nothing new: every count in the file was taken in before")
    # before the telling, which may fail: the rejects are part of what was done with the file
    problems = [_describe_rejects(checked, write_rejects(output_uri, checked.rejects))] if checked.rejects else []
    if checked.accepted.num_rows:
        try:
            _tell(*_learn(output_uri, nights[-1]))
        except (InputError, GateError, FileNotFoundError) as error:
            problems.append(f"the counts are taken in, but what the next audit will know can't be said: {error}")
    if problems:
        raise GateError("\n".join(problems))


def _learn(output_uri: str, night: str) -> tuple[History, RecordModel]:
    """What is known after the latest night, the counts just taken in included."""
    history = read_history(output_uri, day_after(night))
    return history, learn_record_model(history, read_class_shares(output_uri, night))


def _tell(history: History, record_model: RecordModel) -> None:
    """What the next audit will know."""
    estimates = estimate_window(history)
    resolved = sum(plan.num_random_resolved + plan.num_priority_resolved for plan in history.in_force)
    print(f"window: {len(history.in_force)} nights; resolved: {resolved}; pending: {history.num_pending}")
    differing = history.second_counts
    if differing:
        shown = ", ".join(f"{bin.bin_id!a} of {bin.night}" for bin in differing[:SHOWN])
        more = f" and {len(differing) - SHOWN} more" if len(differing) > SHOWN else ""
        print(f"differ and wait for another person's count (second_counts.csv of jobs.report): {shown}{more}")
    if estimates.error_rate is None:
        planned = sum(plan.num_random_planned for plan in history.in_force)
        waiting = planned - sum(plan.num_random_resolved for plan in history.in_force)
        pending = f"{UNRESOLVED} ({waiting} random bins pending)"
        print(f"error rate: {pending if planned else 'no night drew random bins'}")
    else:
        print(
            f"error rate: {estimates.error_rate:.1%} (95 %: {estimates.error_rate_low:.1%} to "
            f"{estimates.error_rate_high:.1%}; {estimates.estimator}, {estimates.num_random_window} resolved random counts, "
            f"mean of {estimates.window_nights} nights)"
        )
    if estimates.list_precision_window is not None:
        print(
            f"priority lists: {estimates.list_precision_window:.1%} of the counted records were wrong "
            f"({estimates.num_priority_window} of them settled)"
        )
    sizes = ", ".join(
        f"{name} {share:.0%}"
        for name, share in zip(("-1", "+1", "-2", "+2", "further"), record_model.sizes, strict=True)
    )
    state = "assumed" if record_model.assumed else "learned"
    of_bulk = record_model.table()[-1, :-1].sum()
    print(
        f"record model ({state}): {record_model.error_rate:.1%} wrong; {sizes}; of records of "
        f"{record_model.top_class + 2} and more {of_bulk:.1%} with fewer than {record_model.top_class} there; "
        f"stock moved rather than record mistaken: {record_model.recorded_to_true_weight:.0%}"
    )


def _describe_rejects(checked: CheckedCounts, uri: str) -> str:
    reasons = ", ".join(
        f"{count} {reason}" for reason, count in Counter(reason for _, reason, _ in checked.rejects).most_common()
    )
    row, _, detail = min(checked.rejects, key=lambda reject: reject[0].number)
    return f"{len(checked.rejects)} rows were not taken in ({reasons}); all in {uri}\n  row {row.number}: {detail}"


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(RecountConfig, run_recount, job="recount", argv=argv)


if __name__ == "__main__":
    raise SystemExit(main())
