"""The audit's shards for jobs that keep nothing to resume from."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jobs.platform import storage
from jobs.stages.manifest import Manifest, Shard, write_worklist


@contextmanager
def temporary_worklist(manifest: Manifest, output_uri: str, image_size: int = 0) -> Iterator[list[Shard]]:
    """The manifest's shards, copied to where all workers can read them and deleted at the end of the block.
    `image_size`: as in write_worklist."""
    # of this job alone: another one with the same output must not delete it
    folder_uri = storage.join(output_uri, f"worklist-{uuid.uuid4().hex}")
    try:
        yield write_worklist(manifest, folder_uri, image_size)
    finally:
        storage.delete([entry.uri for entry in storage.list_objects(folder_uri)])
        if not storage.is_s3(folder_uri) and Path(folder_uri).is_dir():
            Path(folder_uri).rmdir()
