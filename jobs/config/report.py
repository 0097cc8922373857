"""Settings of the planner's page and lists."""

from jobs.config.base import JobConfig, NightDate


class ReportConfig(JobConfig):
    """Writes a committed night's page, recount lists and discrepancies."""

    output_uri: str
    """Where all nights are, as given to `jobs.audit`."""

    audit_date: NightDate
    """The night; it must be committed."""

    report_uri: str
    """The folder to write into: report.html, the recount lists and the discrepancies as CSV and XLSX,
    queries.sql, report.json."""
