"""What a `-uri` is: a local path, `file:///…` or `s3://bucket/key`. Nothing is asked of a storage here."""

from __future__ import annotations

import os
import re
from urllib.parse import unquote

from schemas.errors import InputError

UNSTORABLE = re.compile("[\0-\x1f\x7f\ud800-\udfff]")
"""What obstore takes in no name: control characters, and halves of surrogates, by which Python reads a file's name that is
no UTF-8."""


def is_s3(uri: str) -> bool:
    return uri.startswith("s3://")


def bucket_of(uri: str) -> str | None:
    """None for a local path."""
    return uri.split("/", 3)[2] if is_s3(uri) else None


def absolute(uri: str) -> str:
    """The form of `uri` that means the same on every worker and stands in listings: local paths absolute, no trailing
    slash. Raises InputError for what names no place, or one that listings would name otherwise or that no storage takes."""
    if is_s3(uri):
        return _check_characters(_checked_s3(uri.rstrip("/")))
    if not uri:
        raise InputError(
            "expected a local path, file:///path or s3://bucket/key, found an empty text (an unset variable?)"
        )
    if uri.startswith("file:///"):
        uri = unquote(uri.removeprefix("file://"))
    scheme, colon, _ = uri.partition(":")
    if "://" in uri or (colon and scheme.lower() in ("s3", "s3a", "s3n", "file")):
        # the rest may hold a password
        raise InputError(f"{scheme}:…: expected a local path, file:///path or s3://bucket/key, found none of them")
    # not Path: its resolve would follow links, and its expanduser raises where a user is not known
    path = os.path.abspath(os.path.expanduser(uri))  # noqa: PTH100, PTH111
    return _check_characters("/" + path.lstrip("/"))  # abspath keeps two leading slashes


def _check_characters(place: str) -> str:
    if found := UNSTORABLE.search(place):
        raise InputError(
            f"{place!a}: expected UTF-8 without control characters, found {found[0]!a}; rename what stands there"
        )
    return place


def is_bucket(place: str) -> bool:
    """Whether a place (of `absolute`) is a whole bucket."""
    return is_s3(place) and "/" not in place.removeprefix("s3://")


def beside(uri: str, suffix: str) -> str:
    """The place of that name and `suffix`. Raises InputError for a whole bucket: what is named so is another bucket."""
    place = absolute(uri)
    if is_bucket(place):
        raise InputError(f"{uri}: expected a place in the bucket, such as {place}/NAME, found the bucket alone")
    return place + suffix


def join(uri: str, *parts: str) -> str:
    return "/".join([uri.rstrip("/"), *parts])


def check_bucket(uri: str, bucket: str) -> None:
    """Raises InputError where `uri` names no bucket, or none that can be opened."""
    if not bucket:
        raise InputError(f"{uri}: expected s3://bucket/key, found no bucket")
    if "@" in bucket or (":" in bucket and "@" in uri):  # a key and its secret, as other tools take them
        raise InputError(
            "s3://…: expected s3://bucket/key, found credentials in it; AWS_PROFILE, a role or "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY give them"
        )
    if not re.fullmatch(r"[A-Za-z0-9._-]+", bucket):  # obstore panics at others
        raise InputError(f"{uri}: expected letters, digits, ., _ and - in the bucket's name, found {bucket!a}")


def _checked_s3(uri: str) -> str:
    bucket, *key = uri.removeprefix("s3:").removeprefix("//").split("/")
    check_bucket(uri, bucket)
    wrong = [part for part in key if part in ("", ".", "..")]
    if wrong:
        raise InputError(
            f"{uri}: expected names between the slashes, found {wrong[0]!a}; an empty one often is a variable that is not set"
        )
    return uri
