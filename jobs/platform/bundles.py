"""Bundles at a `-uri`: a local folder as it is, one on S3 fetched for the length of a block."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jobs.platform import storage
from schemas.errors import InputError


@contextmanager
def local_bundle(uri: str) -> Iterator[Path]:
    """A folder with the bundle's files. Raises InputError where there is none; its messages name the URI."""
    if not storage.is_s3(uri):
        yield Path(storage.absolute(uri))
        return
    uri = storage.absolute(uri)
    with tempfile.TemporaryDirectory(prefix="bundle-") as folder:
        try:
            storage.download_folder(uri, Path(folder))
            yield Path(folder)
        except FileNotFoundError as error:
            raise InputError(f"{uri}: expected a bundle (as jobs.train writes it), found nothing there") from error
        except InputError as error:
            raise InputError(str(error).replace(folder, uri)) from error
