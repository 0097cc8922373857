"""Writes what planners and analysts get in the morning: one page, the recount lists, the discrepancies.

    python -m jobs.report --output-uri demo/audits --audit-date $(date -u +%F) --report-uri demo/report

    ray job submit --working-dir . -- python -m jobs.report --output-uri s3://stock/audits \\
        --audit-date 2026-11-22 --report-uri s3://stock/reports/2026-11-22

Writes below --report-uri: report.html (one file, no network needed), recount_list.csv and .xlsx (blind, in walk
order, for the floor), second_counts.csv (as blind: mismatches of this and earlier nights that another person must
count), recount_list_planner.csv (the list's bins with quantities and doubt), discrepancies.csv and .xlsx
(every bin with everything, for the planner), queries.sql (ready queries over the views), and report.json (what made
it), which is written last. Exit codes: 0 written, 1 could not be completed, 2 bad arguments or a night that is not
committed.
"""

from __future__ import annotations

from collections.abc import Sequence

from jobs.config.report import ReportConfig
from jobs.platform.command import run_command
from jobs.reporting.files import write_report


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(ReportConfig, write_report, job="report", argv=argv)


if __name__ == "__main__":
    raise SystemExit(main())
