"""Settings of the exploration."""

from pydantic import PositiveInt

from jobs.config.base import JobConfig, Seed


class ExploreConfig(JobConfig):
    """Looks at a manifest before anything is trained or audited: quantities, photos, suspicious records."""

    manifest_uri: str
    """The bins to look at: a manifest, as `jobs.ingest` writes it."""

    output_uri: str
    """Where index.html goes; that of an earlier exploration is replaced."""

    num_photos: PositiveInt = 2000
    """About so many photos are fetched and looked at, drawn by a hash of seed and bin_id; all where there are no more
    bins than that. Records are always all read."""

    allowed_root: tuple[str, ...] = ()
    """Photos are only read below these URIs; by default below the manifest's images_uri."""

    anonymous: bool = False
    """Read photos from a public bucket without credentials."""

    seed: Seed = 0
    """Of the draw of photos."""
