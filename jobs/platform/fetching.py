"""One stored object, whole, or why it can't be had: for photos and records, of which many are asked for at once."""

from __future__ import annotations

import asyncio
import re
import time
from datetime import datetime
from enum import StrEnum, auto
from typing import Any

from obstore.exceptions import (
    BaseError,
    InvalidPathError,
    NotFoundError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)

from jobs.platform import s3, storage
from jobs.platform.storage_errors import NO_LOCAL_KEY, cause_of, explain, may_pass, reason_of
from jobs.platform.uris import UNSTORABLE, is_s3

OUTAGE_FAILURES = 16
"""So many objects in a row that did not come, each after its retries, and it is the storage that is away and not an object."""

_RETRIED = re.compile(r"after \d+ retries")
"""Stands in obstore's errors for what it asked for again and again; one that was refused for good has none."""
_LASTING = re.compile(r"\(os error (20|36|40)\)")
"""ENOTDIR, ENAMETOOLONG, ELOOP: a local path's own fault. What else a local read ends with is a disk or a mount that fails."""

_OF_ALL_REQUESTS = (
    *("ExpiredToken", "InvalidToken", "InvalidAccessKeyId"),
    *("RequestTimeTooSkewed", "SignatureDoesNotMatch"),
)
"""S3's reasons (400 and 403) that lie in the credentials or the clock, and not in the object that was asked for."""

_SIGNS = (
    *("timed out", "Connection refused", "connection closed", "SlowDown", "Is a directory"),
    "incorrectly configured region",
)
"""What says enough of an error where it stands in one."""

CHANGED = "changed since it was listed; ingest again"


class Fault(StrEnum):
    """Why an object did not come; GAVE_UP: not in all retries, as where the storage is away, or a disk or mount fails, or
    because of what all others need as well, such as credentials that have expired."""

    MISSING = auto()
    DENIED = auto()
    NO_KEY = auto()
    TOO_LARGE = auto()
    REFUSED = auto()
    CHANGED = auto()
    GAVE_UP = auto()


class NotFetched(Exception):  # noqa: N818 - what became of it, as UnreadableRecord
    """An object that did not come; says so in a few words that are the same for many objects."""

    def __init__(self, fault: Fault, detail: str) -> None:
        super().__init__(detail)
        self.fault = fault


class FailureStreak:
    """Objects in a row that did not come, of the many that are asked for at once."""

    def __init__(self) -> None:
        self._num_failed = 0

    def end(self) -> None:
        """One came, or failed by itself."""
        self._num_failed = 0

    def add(self) -> bool:
        """Counts another one. Returns whether it is the storage that is away by now."""
        self._num_failed += 1
        return self._num_failed >= OUTAGE_FAILURES


async def fetch_bytes(
    uri: str,
    *,
    anonymous: bool,
    most_bytes: int,
    etag: str | None = None,
    num_bytes: int | None = None,
    unchanged_since: datetime | None = None,
) -> bytes:
    """The whole object of at most `most_bytes`; one in S3 must have the `etag` still, any must have `num_bytes` still and must
    not have been written after `unchanged_since`. A local file's ETag isn't asked for: it holds the inode and the time, which
    a folder that was copied back changes. Connection errors and throttling are retried by the storage layer, for s3.RETRIES,
    and then given up on.

    Raises NotFetched, and InputError for a store that can't be opened.
    """
    if UNSTORABLE.search(uri):
        raise NotFetched(Fault.NO_KEY, "not a valid key")
    store, key = storage.locate(uri, anonymous=anonymous)
    options: dict[str, Any] = {"if_match": etag} if etag and is_s3(uri) else {}
    if unchanged_since is not None:
        options["if_unmodified_since"] = unchanged_since
    give_up_at = time.monotonic() + s3.RETRIES["retry_timeout"].total_seconds()
    for attempt in range(storage.CUT_TRIES):
        try:
            answer = await store.get_async(key, options=options)  # type: ignore[arg-type]
        except (NotFoundError, FileNotFoundError) as error:
            raise NotFetched(Fault.MISSING, "not found") from error
        except (PermissionDeniedError, UnauthenticatedError, PermissionError) as error:
            if not may_pass(error):
                fault = Fault.GAVE_UP if reason_of(error) in _OF_ALL_REQUESTS else Fault.DENIED
                raise NotFetched(fault, _denied(error)) from error
            failure = explain(error)
        except PreconditionError as error:
            raise NotFetched(Fault.CHANGED, CHANGED) from error
        except (InvalidPathError, ValueError) as error:  # empty parts and dots of a key, which an inventory may name
            raise NotFetched(Fault.NO_KEY, "not a valid key") from error
        except (BaseError, OSError) as error:
            if NO_LOCAL_KEY in str(error).lower():
                raise NotFetched(Fault.NO_KEY, "a name that ends in # and digits; rename the file") from error
            if is_s3(uri):
                gave_up = reason_of(error) in _OF_ALL_REQUESTS or _RETRIED.search(str(error)) is not None
            else:
                gave_up = _LASTING.search(str(error)) is None
            if gave_up or not may_pass(error):
                raise NotFetched(Fault.GAVE_UP if gave_up else Fault.REFUSED, _kind(error)) from error
            failure = _kind(error)
        else:
            size = answer.meta["size"]
            if size > most_bytes:
                raise NotFetched(Fault.TOO_LARGE, f"{size} bytes, more than {most_bytes}")
            if num_bytes not in (None, size):
                raise NotFetched(Fault.CHANGED, CHANGED)
            try:
                data = bytes(await answer.bytes_async())
                if len(data) == size:
                    return data
                failure = f"{len(data)} of {size} bytes came"
            except (BaseError, OSError) as error:
                failure = _kind(error)
        if time.monotonic() > give_up_at:
            break
        await asyncio.sleep(min(5.0, 0.2 * 2**attempt))
    raise NotFetched(Fault.GAVE_UP, f"given up: {failure}")


def _denied(error: Exception) -> str:
    """S3 forbids also what is archived (InvalidObjectState), or whoever's clock is off (RequestTimeTooSkewed)."""
    reason = reason_of(error)
    return "access denied" if reason in (None, "AccessDenied") else f"access denied ({reason})"


def _kind(error: Exception) -> str:
    """Kind of a storage error in a few words that are the same for many objects (request ids would not be)."""
    text = str(error)
    for sign in _SIGNS:
        if sign.lower() in text.lower():
            return f"{type(error).__name__}: {sign}"
    status, reason = re.search(r"status code: [\w ]+", text), reason_of(error)
    answer = [part for part in (status and status[0], reason and f"<Code>{reason}</Code>") if part]
    told = " ".join(answer) or cause_of(error)
    return f"{type(error).__name__}: {told}" if told else explain(error)
