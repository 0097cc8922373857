"""The optional bearer token: read from the environment where the application is built, never written anywhere.

Replicas get its SHA-256 only, as deployment arguments can be seen in Ray's dashboard.
"""

from __future__ import annotations

import hashlib
import hmac
import os

from schemas.errors import InputError

TOKEN_VARIABLE = "STOCK_AUDIT_TOKEN"
MIN_TOKEN_LENGTH = 16


def read_token_digest() -> bytes | None:
    """SHA-256 of the token, None where none is set. Raises InputError for one that could be guessed."""
    token = os.environ.get(TOKEN_VARIABLE)
    if token is None:
        return None
    token = token.strip()  # a secret made with `echo` ends with a line end, which no header can hold
    if len(token) < MIN_TOKEN_LENGTH:
        raise InputError(
            f"{TOKEN_VARIABLE}: expected at least {MIN_TOKEN_LENGTH} characters, found {len(token)}; "
            "unset it to serve without a token"
        )
    return _digest(token.encode())


def is_authorized(header: bytes, token_digest: bytes) -> bool:
    """Whether an Authorization header carries the token, in a time that doesn't depend on where it differs."""
    scheme, _, token = header.partition(b" ")
    return hmac.compare_digest(_digest(token.strip()), token_digest) and scheme.lower() == b"bearer"


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()
