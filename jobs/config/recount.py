"""Settings of taking in counted bins."""

from jobs.config.base import JobConfig


class RecountConfig(JobConfig):
    """Takes in counted bins, checks each, and says what was learned from them."""

    output_uri: str
    """Where the audits go, as in `jobs.audit`; counts are added to counted/ there, rejects to count_rejects/."""

    counts_uri: str
    """CSV (UTF-8; comma, semicolon or tab) or Parquet: bin_id, audit_date, counted_qty, counted_at and, where there
    are any, counter_id, confirmed (true or false), reason_code. A count that differs from the record stands once it is
    confirmed, or once another counter_id has found the same. Open the list in a spreadsheet by its text import, with
    bin_id, audit_date, counted_at and counter_id as text: otherwise ids such as 01-02-03 or 1E5 become dates and numbers,
    long ones lose digits, and times are saved as the spreadsheet shows them (years of two digits are refused)."""

    time_zone: str = "UTC"
    """Zone of every counted_at without an offset, such as Europe/Berlin."""
