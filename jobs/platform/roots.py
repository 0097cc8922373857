"""Which photos may be read: those below the allowed roots, whatever a record or a link says."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache

from jobs.platform.uris import absolute, is_s3
from schemas.errors import InputError


def is_allowed(uri: str, roots: Sequence[str]) -> bool:
    """Whether `uri` lies below one of `roots`: no `..`, no other bucket, and no link that leads out of a folder."""
    if is_s3(uri):
        if names_no_object(uri):
            return False
        return any(is_s3(root) and uri.startswith(root.rstrip("/") + "/") for root in roots)
    try:
        real = os.path.realpath(absolute(uri))
    except InputError:
        return False
    return any(not is_s3(root) and real.startswith(_real_root(root)) for root in roots)


def names_no_object(uri: str) -> bool:
    """Whether an S3 URI has an empty part, `.` or `..` in it, of which clients make different keys."""
    return not {"", ".", ".."}.isdisjoint(uri.removeprefix("s3://").split("/"))


@lru_cache(maxsize=64)
def _real_root(root: str) -> str:
    return os.path.realpath(root).rstrip("/") + "/"
