"""How an audit ends: with the report of the night that it committed, and with the night in a few lines."""

from __future__ import annotations

import shlex
from datetime import date

from jobs.config.report import ReportConfig
from jobs.platform.command import message
from jobs.reporting.files import write_report
from jobs.reporting.nights import Night, explain_no_accuracy
from schemas.errors import GateError, InputError
from schemas.results import ImageStatus


def close_night(night: Night, report_uri: str | None) -> None:
    """Writes the report, where it has a place, and tells the night on standard output, whatever became of the report.
    Raises GateError for whatever keeps a committed night from its report."""
    try:
        if report_uri is not None:
            _report(night, report_uri)
    finally:
        print("\n".join(_describe(night)))


def _report(night: Night, report_uri: str) -> None:
    config = ReportConfig(
        output_uri=night.output_uri,
        audit_date=date.fromisoformat(night.audit_date),
        report_uri=report_uri,
    )
    try:
        write_report(config)
    except (InputError, GateError) as error:
        flags = " ".join(f"--{name.replace('_', '-')} {shlex.quote(str(value))}" for name, value in config)
        raise GateError(
            f"the night {night.audit_date} is committed, but its report is not written ({message(error)}); mend it and "
            f"run: python -m jobs.report {flags}"
        ) from error


def _describe(night: Night) -> list[str]:
    whole = night.whole
    share = whole["coverage"] or 0
    statuses = {status: whole[f"num_{status}"] for status in sorted(ImageStatus)}
    lines = [
        f"night {night.audit_date} is committed by run {night.run_id}",
        "images: " + ", ".join(f"{count:,} {status}" for status, count in statuses.items() if count),
        f"assessed: {whole['num_assessed']:,} of {whole['num_bins']:,} bins ({share:.1%})",
        f"tonight's list: {whole['num_priority']} priority recounts (claims {whole['exp_wrong_in_list']:.1f} wrong "
        f"records), {whole['num_random']} random ones; record model: {whole['record_model']}",
    ]
    if whole["error_rate"] is None:
        only = "" if whole["num_certified"] else ": ranking only"
        lines.append(f"record accuracy: {explain_no_accuracy(whole)}{only}")
    else:
        low, high = 1 - whole["error_rate_high"], 1 - whole["error_rate_low"]
        lines.append(
            f"record accuracy: {whole['ira']:.1%} (95 %: {low:.1%} to {high:.1%}; {whole['num_random_window']} resolved "
            f"random counts, mean of {whole['window_nights']} nights)"
        )
    if whole["drift_alarm"]:
        lines.append(
            "drift alarm: records leave the camera's 90 % set more often than when it was calibrated, or than in earlier nights"
        )
    lines.append(
        f"results: {night.output_uri}/results/audit_date={night.audit_date}/, views: {night.output_uri}/views.sql"
    )
    return lines
