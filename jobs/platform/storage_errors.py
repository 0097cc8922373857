"""What an error of obstore or of a local folder means: which of them waiting mends, and a line that tells it."""

from __future__ import annotations

import re

from obstore.exceptions import (
    BaseError,
    InvalidPathError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
)

from schemas.errors import GateError, InputError

NO_LOCAL_KEY = "filenames containing trailing"
"""Of a local `name#1`, which obstore keeps for itself, and of `/`."""

# What mending the arguments or the permissions cures; all else is the storage's own trouble, and may pass.
_WRONG_PLACE = (
    "unable to create dir",
    "permission denied",
    "read-only file system",
    "not a directory",
    "is a directory",
    "file name too long",
    "too many levels of symbolic links",
    "file system loop",
    NO_LOCAL_KEY,
    "nosuchbucket",
    "bucket does not exist",
    "incorrectly configured region",
    "invalidcertificate(",
    # of a file system without the hard links by which a file is created only where none is
    "operation not permitted",
    "operation not supported",
    "function not implemented",
    "<code>expiredtoken",
    "<code>invalidtoken",
    "<code>authorizationheadermalformed",
    # of a server that has no conditional writes
    "<code>notimplemented",
    # of a listing, obstore raises a GenericError whatever the status
    "status code: 401",
    "status code: 403",
)

_NO_CREDENTIALS = "External AWS credential provider"
"""Stands in obstore's errors where a role's credentials could not be renewed."""

_REFUSED = re.compile(
    r"An error occurred \((?!5\d\d|Throttl|Request(Limit|Throttl|Timeout)|TooMany|SlowDown|ServiceUnavail|Internal|IDPComm)"
    r"|SSOToken|TokenRetrievalError"
)
"""Stands in them where whoever gives credentials answered, and refused them for good."""


def failure_of(uri: str, verb: str, error: Exception) -> InputError | GateError:
    """InputError (exit 2) for a place that can't be used, GateError (exit 1) for storage that is away or full."""
    message = f"{uri}: can't be {verb} ({explain(error)})"
    if isinstance(error, InvalidPathError) and verb == "listed":
        return InputError(
            f"{message}; rename that object, or name the others in an S3 Inventory report (jobs.ingest --inventory-uri)"
        )
    refused = isinstance(
        error, PermissionDeniedError | UnauthenticatedError | InvalidPathError | NotFoundError | PermissionError
    )
    if not _lack_credentials(error) and (refused or any(sign in str(error).lower() for sign in _WRONG_PLACE)):
        return InputError(f"{message}; check the place and the permissions")
    return GateError(f"{message}; when storage is back, the same command goes on")


def may_pass(error: Exception) -> bool:
    """Whether asking again may help where obstore doesn't: the source of credentials did not answer, or an answer broke off
    on its way (obstore goes on with an object's body, but asks again neither for a page of a listing nor for the few bytes
    that say why there is no object)."""
    return "response body" in str(error) or _lack_credentials(error)


def _lack_credentials(error: Exception) -> bool:
    return _NO_CREDENTIALS in str(error) and not _REFUSED.search(str(error))


def explain(error: Exception) -> str:
    """One line about an error, of storage without request details (they may hold signed headers)."""
    if not isinstance(error, BaseError):
        return f"{type(error).__name__}: {error}"
    first = str(error).strip().splitlines()[0] if str(error).strip() else ""
    line = f"{type(error).__name__}: {first.partition('<?xml')[0].rstrip(' :')}"[:300]
    # S3's own reason stands below that first line, and of a connection that failed its cause
    reason = reason_of(error)
    cause = cause_of(error) if reason is None else f"<Code>{reason}</Code>"
    return line if cause is None or cause in line else f"{line}: {cause}"


def reason_of(error: Exception) -> str | None:
    """The code that S3 gave as its reason, such as SlowDown; None where it gave none."""
    found = re.search(r"<Code>([\w.]+)</Code>", str(error))
    return found[1] if found else None


def cause_of(error: Exception) -> str | None:
    """Why a connection failed, such as `Connection refused` or `InvalidCertificate(UnknownIssuer)`; None where none says."""
    text = str(error)
    if "HTTP error: " not in text:
        return None
    certificate = re.search(r"InvalidCertificate\(\s*(\w+)", text)
    if certificate:
        return f"InvalidCertificate({certificate[1]}); AWS_CA_BUNDLE names a certificate of one's own"
    found = re.findall(r'(?:message|error): "([^"\n]+)"|(TimedOut)', text)  # the innermost one stands last
    return "".join(found[-1]) if found else None
