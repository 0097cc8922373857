"""Settings of `jobs.ingest`."""

from __future__ import annotations

from pydantic import Field, model_validator

from jobs.config.base import JobConfig, NightDate


class IngestConfig(JobConfig):
    """Builds the night's manifest: one row per bin, its photo beside its record."""

    images_uri: str = Field(min_length=1)
    """Folder of bin photos (.jpg, .jpeg, .png, .webp, at any depth), local or s3://. A photo belongs to the record
    with the same stem: bin-images/00001.jpg to 00001."""

    records_uri: str = Field(min_length=1)
    """Folder of ABID records (one NNNNN.json a bin), or a WMS export: a .csv or .csv.gz file, a .parquet file, or a
    folder of them whose own name ends in .parquet; one line per bin and SKU. Columns: bin_id, sku, quantity;
    optional: name, zone, abc_class, unit_value, currency, image_uri (else the photo's stem is the bin_id), photo_at,
    expected_as_of, moves_since_photo. An empty bin is one line without a sku and with quantity 0. The lines of a
    bin must agree on what is the bin's (a mixed bin may name several classes). Rejects count rows from 1, a CSV's header too,
    blank lines not. In a CSV a quotation mark inside of a cell in quotation marks is written twice, in every column; times
    state their offset (2026-01-31T02:00:00Z), and a decimal point is a point: a quantity of 1.000 is refused, as it may be a
    thousand; a unit_value of 1.250 is one and a quarter. In Parquet times are timestamps with a zone, and values numbers."""

    manifest_uri: str = Field(min_length=1)
    """Folder that the manifest is written to. What could not be used goes to <manifest-uri>.rejects."""

    audit_date: NightDate | None = None
    """The night, YYYY-MM-DD; today (UTC) if left out."""

    inventory_uri: tuple[str, ...] = ()
    """S3 Inventory to take the keys from instead of listing (worth it from millions of photos on): its manifest.json,
    or its Parquet or CSV files (several in a row, or the flag again). It stands for the images and, where they are a folder of the same bucket, the
    records; what came after the inventory was made is not seen."""

    anonymous: bool = False
    """Read images, records and an inventory in their bucket without credentials (public buckets)."""

    max_missing_share: float = Field(default=1.0, ge=0, le=1)
    """Write nothing and exit 1 where more of the records than this share have no photo (they are rejects, no bins of the
    night, so that no gate of the audit counts them): in the night, when an upload may be late."""

    replace: bool = False
    """Replace the manifest that is already at --manifest-uri."""

    @model_validator(mode="after")
    def _check_inventory(self) -> IngestConfig:
        if self.inventory_uri and not self.images_uri.startswith("s3://"):
            raise ValueError(f"--inventory-uri lists an S3 bucket, but --images-uri is {self.images_uri}")
        return self
