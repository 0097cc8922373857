"""The counter and the audit's statistics. Knows no job and no storage client."""
