"""S3 as the usual AWS chain has it: which server, which region a bucket lies in, whose credentials, how long to retry."""

from __future__ import annotations

import os
import re
import time
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import boto3
import botocore.session
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from obstore.auth.boto3 import Boto3CredentialProvider
from obstore.exceptions import BaseError
from obstore.store import S3Store

from schemas.errors import InputError

if TYPE_CHECKING:
    from botocore.credentials import Credentials
    from obstore.store import ClientConfig, RetryConfig

# Outlasts a storage server that is away for a minute; throttling (503, SLOW_DOWN) backs off within it. The pauses are
# drawn at random: 40 retries have been over after a minute, so only the time ends them.
RETRIES: RetryConfig = {
    "max_retries": 1000,
    "retry_timeout": timedelta(minutes=2),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=10), "base": 2},
}

# A connection on which nothing comes for a minute is given up; one that is merely slow has ten minutes for a request. What
# is sent counts as nothing coming: see storage.PARTS_AT_ONCE.
LIMITS: ClientConfig = {"timeout": "600s", "read_timeout": "60s", "connect_timeout": "5s"}

CREDENTIAL_PAUSES = (0.5, 1.0, 0.0)
"""After each time that no credentials were found, in seconds."""

GUESS_SECONDS = 60.0
"""How long a bucket's region that could not be asked for stays a guess."""

_VISIBLE = re.compile("[!-~]+")
"""What obstore takes in a header: it panics at a line's end or a letter that is not ASCII."""


def endpoint() -> str | None:
    """The S3 server that is meant, by the environment or the profile; None for AWS's own."""
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        if named := os.environ.get(name):
            return _checked_endpoint(name, named)
    named = _profile_endpoint(os.environ.get("AWS_PROFILE"))
    return named and _checked_endpoint("endpoint_url", named)


def _checked_endpoint(name: str, url: str) -> str:
    """Raises InputError for what is no server's URL, or holds a secret that would stand in every message about it."""
    if "@" in url:
        raise InputError(
            f"{name}: expected http://host:port, found one with a user or a password in it; give those as "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    try:
        # urlsplit drops a line's end, which obstore does not survive
        if (
            re.fullmatch(r"https?://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]+)?(/[!-~]*)?", url)
            and "?" not in url
            and urlsplit(url).port != 0
        ):
            return url
    except ValueError:
        pass  # brackets that are not closed, a port above 65535
    raise InputError(f"{name}: expected http://host:port or https://host, found {url!r}")


@lru_cache(maxsize=1)
def _profile_endpoint(profile: str | None) -> str | None:
    def resolve(*, ignore: bool) -> str:
        config = Config(signature_version=UNSIGNED, ignore_configured_endpoint_urls=ignore)
        return _session().client("s3", region_name=region(), config=config).meta.endpoint_url

    try:
        meant = resolve(ignore=False)
        return None if meant == resolve(ignore=True) else meant
    except (BotoCoreError, ValueError) as error:
        raise _settings_error(error) from error


def region() -> str:
    """The region of the S3 server that is meant: the environment's, else the profile's. Raises InputError for what is none."""
    named = os.environ.get("AWS_DEFAULT_REGION") or os.environ.get("AWS_REGION")
    found = named or _session().region_name or "us-east-1"
    if not _VISIBLE.fullmatch(found):  # as of a file with Windows' line ends
        raise InputError(
            f"AWS_REGION, AWS_DEFAULT_REGION or the profile's region: expected one like eu-west-1, found {found!a}"
        )
    return found


def ca_bundle() -> str | None:
    """The file of certificates (PEM) that may have signed the server's, besides the system's own; None where none is named."""
    return botocore.session.Session().get_config_variable("ca_bundle")


def _session() -> boto3.Session:
    """Raises InputError for AWS settings that contradict each other."""
    try:
        return boto3.Session()
    except BotoCoreError as error:
        raise _settings_error(error) from error


def assumes_role() -> bool:
    """Whether the credentials are those of a role that the profile assumes (role_arn)."""
    found = _session().get_credentials()
    return found is not None and found.method == "assume-role"


def _settings_error(error: Exception) -> InputError:
    return InputError(f"AWS settings: {error}; see AWS_PROFILE, AWS_REGION and the AWS configuration files")


def _ask_region(bucket: str, anonymous: bool) -> str:
    """Where AWS keeps the bucket: photos of a public one lie elsewhere than one's own. The region that is set where AWS
    doesn't say, and of another server. Raises BotoCoreError or ClientError where AWS has trouble of its own."""
    configured = region()
    if endpoint():
        return configured
    # not its usual minutes: who asks first must not wait longer than the transfers would
    config = Config(
        signature_version=UNSIGNED if anonymous else None, connect_timeout=5, retries={"total_max_attempts": 2}
    )
    try:
        answer = _session().client("s3", region_name=configured, config=config).head_bucket(Bucket=bucket)
    except ClientError as error:  # of what is elsewhere or may not be read it says where that is, too
        answer = error.response
        if answer["ResponseMetadata"]["HTTPStatusCode"] >= 500:
            raise
    return answer["ResponseMetadata"]["HTTPHeaders"].get("x-amz-bucket-region", configured)


_guessed: dict[tuple[str, bool], tuple[float, S3Store]] = {}
"""Stores whose region nobody could be asked for, and when to ask again."""


def open_bucket(bucket: str, anonymous: bool) -> S3Store:
    """The bucket's store, kept. Raises InputError for AWS settings or credentials that don't do."""
    until, guessed = _guessed.get((bucket, anonymous), (0.0, None))
    if guessed is not None and time.monotonic() < until:
        return guessed
    try:
        return _known_store(bucket, anonymous)
    except (BotoCoreError, ClientError):  # once the trouble has passed, another region may be the right one
        guessed = guessed or _open_store(bucket, anonymous, region())
        _guessed[bucket, anonymous] = time.monotonic() + GUESS_SECONDS, guessed
        return guessed


@lru_cache(maxsize=64)
def _known_store(bucket: str, anonymous: bool) -> S3Store:
    return _open_store(bucket, anonymous, _ask_region(bucket, anonymous))


def _open_store(bucket: str, anonymous: bool, where: str) -> S3Store:
    session = _session()
    server = endpoint()
    options: dict = {"region": where, "endpoint": server or _aws_server(where)}
    if server is None and "." not in bucket:  # AWS's certificate names no bucket with a dot
        options |= {
            "endpoint": options["endpoint"].replace("://", f"://{bucket}."),
            "virtual_hosted_style_request": True,
        }
    if anonymous:
        options["skip_signature"] = True
    else:
        _check_credentials(bucket, session)
        # obstore keeps what it is given for its ttl less five minutes, whatever a role's own expiry; botocore, which is
        # asked anew then, renews at the latest when ten are left
        options["credential_provider"] = Boto3CredentialProvider(session, ttl=timedelta(minutes=10))
    client: ClientConfig = {
        "allow_http": server is not None and server.startswith("http://"),
        **LIMITS,
        # Photos of many bins come from one host: let the pool keep their connections.
        "pool_max_idle_per_host": "256",
    }
    certificates = None if client["allow_http"] else ca_bundle()
    try:
        if certificates:
            client["root_certificate"] = Path(certificates).read_bytes()
        return S3Store(bucket, client_options=client, retry_config=RETRIES, **options)
    except (OSError, ValueError, BaseError) as error:
        if not certificates:
            raise
        raise InputError(
            f"AWS_CA_BUNDLE: expected a file of certificates (PEM), found {certificates}: {error}"
        ) from error


def _aws_server(where: str) -> str:
    """AWS's own in a region. obstore would take another one in China, and know no FIPS or dual-stack settings."""
    config = Config(
        signature_version=UNSIGNED,
        ignore_configured_endpoint_urls=True,
        # not the one for all regions, which sends what is asked of it elsewhere
        s3={"us_east_1_regional_endpoint": "regional"},
    )
    return _session().client("s3", region_name=where, config=config).meta.endpoint_url


def _check_credentials(bucket: str, session: boto3.Session) -> None:
    """Raises InputError where there are none, where AWS's chain can't make them out, or where no header could hold them."""
    for pause in CREDENTIAL_PAUSES:
        try:
            if (found := session.get_credentials()) is not None:
                return _check_visible(bucket, found)
        except (BotoCoreError, RuntimeError) as error:  # the second: of exported ones that have expired
            raise InputError(
                f"s3://{bucket}: AWS credentials: {error}; see AWS_… and the profile that is used"
            ) from error
        time.sleep(pause)  # none at all, or a machine's own service that is slow to give them
    raise InputError(
        f"s3://{bucket}: no AWS credentials found; set a profile, a role or AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY, or pass --anonymous for a public bucket"
    )


def _check_visible(bucket: str, found: Credentials) -> None:
    if found.method not in ("env", "shared-credentials-file", "config-file"):
        return  # asked for when they are needed
    keys = found.get_frozen_credentials()
    parts = {
        "AWS_ACCESS_KEY_ID": keys.access_key,
        "AWS_SECRET_ACCESS_KEY": keys.secret_key,
        "AWS_SESSION_TOKEN": keys.token,
    }
    wrong = [name for name, value in parts.items() if value and not _VISIBLE.fullmatch(value)]
    if wrong:
        raise InputError(
            f"s3://{bucket}: AWS credentials: {wrong[0]} ({found.method}): expected visible ASCII characters, found others in it "
            "(Windows' line ends, a blank?); set it anew"
        )
