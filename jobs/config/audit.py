"""Settings of the nightly audit."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat

from jobs.config.base import JobConfig, NightDate, PrecisionChoice, Seed


class AuditConfig(JobConfig):
    """Scores a night's photos, reconciles each count with the record and publishes the night."""

    manifest_uri: str
    """The night's work list, as `jobs.ingest` writes it (or your WMS: see the README's columns)."""

    bundle_uri: str
    """The trained counter, as `jobs.train` writes it. Nothing picks the latest one for you."""

    output_uri: str
    """Where all nights go: results/, recount_plan/, summary/, counted/, count_rejects/, runs/, locks/, views.sql."""

    audit_date: NightDate | None = None
    """The night, for a manifest that names none; one that disagrees with the manifest's is an error."""

    recount_budget: NonNegativeInt = 100
    """How many bins can be counted by people tomorrow; 0 writes an empty plan."""

    random_share: float = Field(default=0.3, ge=0, le=1)
    """Share of the budget drawn at random (at least 10 bins); without it nothing can be claimed, only ranked."""

    alpha: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(default=(0.1, 0.2, 0.3, 0.5), min_length=1)
    """False-discovery rates at which bins are certified, given 200 random counts in the last 30 days; several in a row, or
    the flag again."""

    objective: Literal["probability", "value"] = "probability"
    """What the priority list ranks by; `value` needs unit_value in every row and one currency."""

    count_valid_nights: NonNegativeInt = 14
    """A counted bin stays off the priority list for so many nights, while its record is unchanged or corrected to what was
    counted; one that differs and that nobody is asked to count again may return at once."""

    replace: bool = False
    """Replace a night that is already committed."""

    replace_counted: bool = False
    """Replace it even though counts against its plan have come in (they are kept, but the new plan does not know them: it may
    ask for bins that they have settled). Where records were corrected by those counts, give another --seed as well: the same
    draw would judge all bins by those that were put right."""

    precision: PrecisionChoice = "auto"
    """Arithmetic of the network; auto is bf16 where the hardware gains by it, else fp32. int8 is for CPUs: evaluate the
    bundle with it first (`jobs.evaluate --precision int8`), which refuses one that counts too differently."""

    max_unreadable_share: float = Field(default=0.05, ge=0, le=1)
    """Nothing is committed beyond this share of unreadable or rejected images."""

    max_missing_share: float = Field(default=0.05, ge=0, le=1)
    """Nothing is committed beyond this share of missing or unfetched images."""

    allowed_root: tuple[str, ...] = ()
    """Photos are only read below these URIs (several in a row, or the flag again); by default below the manifest's
    images_uri."""

    max_photo_age_hours: float | None = Field(default=None, gt=0, le=100_000)
    """A photo taken longer before or after its record was read is `stale_photo`, and so is one of unknown age; by default
    photos do not age."""

    anonymous: bool = False
    """Read photos from a public bucket without credentials."""

    seed: Seed = 0
    """Of the nightly random draw, with the night and the bin."""

    node_price: PositiveFloat | None = None
    """Price of one node hour: puts the price of 1,000 images into the summary."""

    report_uri: str | None = None
    """Write the planner's page and lists there at the end, as `jobs.report` does."""
