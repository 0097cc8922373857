"""Settings of the generated sample."""

from pydantic import Field

from jobs.config.base import JobConfig, Seed


class SampleConfig(JobConfig):
    """Generates bin photos and records in ABID's layout, with the truth beside them, for demonstrations and tests."""

    output_uri: str
    """Where bin-images/, metadata/, truth.parquet and sample.json go; empty, or the same sample."""

    num_bins: int = Field(default=1000, ge=1, le=10_000_000)
    """How many bins; each comes out the same whatever the others are."""

    seed: Seed = 0
    """Another seed is another warehouse; the same seed gives the same files, byte for byte."""

    record_error_rate: float = Field(default=0.02, ge=0, le=1)
    """Share of the records that state another quantity than is there; 0 for photos to learn from."""
