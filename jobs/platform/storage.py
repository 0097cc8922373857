"""What is stored at a `-uri` (see `uris`), read and written through obstore.

S3 settings come from the usual AWS chain (`AWS_ENDPOINT_URL`, `AWS_REGION`, profile, role), which boto3 resolves (`s3`);
obstore does the transfers: it is four times faster here than boto3, streams listings, and has the conditional PUT
for local folders as well as for S3, so that there is one code path.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    NotFoundError,
)
from obstore.store import LocalStore, ObjectStore

from jobs.platform import s3
from jobs.platform.storage_errors import failure_of, may_pass, reason_of
from jobs.platform.uris import absolute, bucket_of, check_bucket, is_s3, join
from schemas.errors import GateError, InputError

logger = logging.getLogger(__name__)

CUT_TRIES = 6
"""What obstore doesn't ask for again is asked for again so often; see may_pass."""

PARTS_AT_ONCE = 2
"""Of an object that is written, 5 MiB each. Together they must be sent within s3.LIMITS' read_timeout: from 1.4 Mbit/s on."""

MOST_DELETED = 1000
"""Objects in one request to delete them, S3's own limit."""

UNPACKED_JOB = "/runtime_resources/working_dir_files/"

_CONFLICTS = ("ConditionalRequestConflict", "OperationAborted")
"""S3's reasons (409) where another request was at the same key: whether an object is there now, it does not say."""


@dataclass(frozen=True)
class StoredObject:
    """One object of a listing."""

    uri: str
    num_bytes: int
    etag: str | None

    @property
    def version(self) -> tuple[str, int, str | None]:
        """Another one where the object was written anew. A local file's ETag begins with its inode, which some mounts number
        anew."""
        if self.etag is None or is_s3(self.uri):
            return self.uri, self.num_bytes, self.etag
        return self.uri, self.num_bytes, self.etag.partition("-")[2]


def locate(uri: str, *, anonymous: bool = False) -> tuple[ObjectStore, str]:
    """The store that holds `uri` and the key in it. Raises InputError for a URI that names none."""
    if not is_s3(uri):
        return _local_store(), absolute(uri).lstrip("/")
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    check_bucket(uri, bucket)
    return s3.open_bucket(bucket, anonymous), key


def _locate_lasting(uri: str) -> tuple[ObjectStore, str]:
    """`locate`, for what is to be kept. Raises InputError for a place in the folder that Ray unpacks a submitted job into:
    each node has its own, and it goes with the job."""
    if not is_s3(uri) and UNPACKED_JOB in absolute(uri):
        raise InputError(
            f"{uri}: expected s3://… or an absolute path that every node has, found one in Ray's copy of the working directory"
        )
    return locate(uri)


@lru_cache(maxsize=1)
def _local_store() -> LocalStore:
    return LocalStore()


def read_bytes(uri: str, *, anonymous: bool = False) -> bytes:
    """Raises FileNotFoundError where nothing is stored, InputError where it can't be read, GateError where storage is away."""
    store, key = locate(uri, anonymous=anonymous)
    num_failed, give_up_at = 0, None
    while True:
        try:
            return bytes(store.get(key).bytes())
        except (NotFoundError, FileNotFoundError, IsADirectoryError) as error:
            raise FileNotFoundError(f"{uri}: not found") from error
        except (BaseError, OSError) as error:
            num_failed += 1
            give_up_at = give_up_at or time.monotonic() + s3.RETRIES["retry_timeout"].total_seconds()
            if num_failed == CUT_TRIES or time.monotonic() > give_up_at or not may_pass(error):
                raise failure_of(uri, "read", error) from error
            time.sleep(0.2 * 2**num_failed)


def read_json(uri: str, *, anonymous: bool = False) -> Any:
    """A JSON document; None where what stands there is none, as a power cut may leave it. Raises as `read_bytes` does."""
    data = read_bytes(uri, anonymous=anonymous)
    try:
        return json.loads(data)
    except ValueError:
        return None


def write_bytes(uri: str, data: bytes | memoryview | Path) -> None:
    """Writes the object whole or not at all; a local file (Path) goes part by part, whatever its size. Raises InputError
    where the place can't be written, GateError where storage is away or full."""
    store, key = _locate_lasting(uri)
    try:
        store.put(key, data, max_concurrency=PARTS_AT_ONCE)
    except (BaseError, OSError) as error:
        raise failure_of(uri, "written", error) from error


def settle(uri: str) -> None:
    """Returns when what this machine wrote to a local folder would outlive a power cut. S3 answers no sooner."""
    if not is_s3(uri):
        os.sync()


def check_writable(uri: str) -> None:
    """Raises InputError where nothing can be written below `uri`, GateError where storage is away or full. Leaves neither an
    object nor a folder there."""
    probe = join(absolute(uri), "_writable")
    made = [] if is_s3(probe) else [folder for folder in Path(probe).parents if not os.access(folder, os.F_OK)]
    write_bytes(probe, b"")
    delete([probe])
    with suppress(OSError):  # somebody else has written there meanwhile
        for folder in made:
            folder.rmdir()


def create_bytes(uri: str, data: bytes | memoryview) -> bool:
    """Writes the object only where none is (conditional PUT). Returns whether this call wrote it. Raises as `write_bytes` does."""
    store, key = _locate_lasting(uri)
    num_failed = 0
    while True:
        try:
            store.put(key, data, mode="create", use_multipart=False)
            return True
        except (AlreadyExistsError, FileExistsError) as error:
            if reason_of(error) not in _CONFLICTS:
                return False
            num_failed += 1
            if num_failed == CUT_TRIES:
                raise failure_of(uri, "written", error) from error
            time.sleep(0.2 * 2**num_failed)
        except (BaseError, OSError) as error:
            raise failure_of(uri, "written", error) from error


def json_bytes(document: Any) -> bytes:
    """A JSON document that a person can read."""
    return (json.dumps(document, indent=1, sort_keys=True) + "\n").encode()


def write_json(uri: str, document: Any) -> None:
    """Raises as `write_bytes` does."""
    write_bytes(uri, json_bytes(document))


def freeze_json(uri: str, document: Any) -> Any:
    """Writes a JSON document where none is and returns what stands there, this one or an earlier one, parsed. What a power
    cut left of an earlier one is replaced, with a warning."""
    data = json_bytes(document)
    if not create_bytes(uri, data):
        kept = read_json(uri)
        if kept is not None:
            return kept
        logger.warning("%s: damaged, as by a power cut; written anew", uri)
        write_bytes(uri, data)
    return json.loads(data)


def exists(uri: str) -> bool:
    """Whether one object is stored at exactly this URI. Raises InputError where it can't be asked for, GateError where
    storage is away."""
    return describe(uri) is not None


def describe(uri: str, *, anonymous: bool = False) -> StoredObject | None:
    """What stands at exactly this URI, None where nothing does. Raises as `exists` does."""
    store, key = locate(uri, anonymous=anonymous)
    try:
        meta = store.head(key)
    except (NotFoundError, FileNotFoundError):
        return None
    except (BaseError, OSError) as error:
        raise failure_of(uri, "looked up", error) from error
    return StoredObject(uri=uri, num_bytes=meta["size"], etag=meta["e_tag"])


def list_objects(uri: str, *, anonymous: bool = False, start_after: str | None = None) -> Iterator[StoredObject]:
    """All objects below `uri`, streamed page by page; none where the folder doesn't exist."""
    store, prefix = locate(uri, anonymous=anonymous)
    root = f"s3://{bucket_of(uri)}/" if is_s3(uri) else "/"
    num_failed = 0
    while True:
        try:
            for page in store.list(prefix or None, offset=start_after, chunk_size=1000):
                num_failed = 0
                for entry in page:
                    start_after = entry["path"]
                    if start_after == prefix:  # the marker of the folder itself, without its slash
                        continue
                    yield StoredObject(uri=root + entry["path"], num_bytes=entry["size"], etag=entry["e_tag"])
            return
        except (NotFoundError, FileNotFoundError):
            return
        except (BaseError, OSError) as error:
            num_failed += 1
            if num_failed == CUT_TRIES or not may_pass(error):
                raise failure_of(uri, "listed", error) from error
            # S3 lists in order, so it goes on after the last key
            time.sleep(0.2 * 2**num_failed)


def delete(uris: Iterable[str]) -> None:
    """Deletes objects, many in a request; one that is already gone is no error. Raises InputError where it is not allowed,
    GateError where storage is away."""
    waiting = iter(uris)
    while some := list(islice(waiting, MOST_DELETED)):
        for store, group in groupby(some, lambda uri: locate(uri)[0]):
            _delete_from(store, list(group))


def _delete_from(store: ObjectStore, uris: list[str]) -> None:
    if len(uris) > 1:
        try:
            store.delete([locate(uri)[1] for uri in uris])
            return
        except (BaseError, OSError):
            # a local folder's ends at the first one that is gone, and what else it is shows one by one
            pass
    for uri in uris:
        try:
            store.delete(locate(uri)[1])
        except (NotFoundError, FileNotFoundError):
            continue
        except (BaseError, OSError) as error:
            raise failure_of(uri, "deleted", error) from error


def find_object(uri: str, *, anonymous: bool = False) -> StoredObject:
    """What stands at exactly this URI. Raises FileNotFoundError where nothing does."""
    found = describe(uri, anonymous=anonymous)
    if found is None:
        raise FileNotFoundError(f"{uri}: not found")
    return found


def download_folder(uri: str, folder: Path) -> None:
    """Copies every object directly below `uri` into `folder`, but for empty ones. Raises FileNotFoundError where there is none,
    GateError where the folder can't hold them."""
    found = False
    for entry in list_objects(uri):
        name = entry.uri.removeprefix(uri.rstrip("/") + "/")
        if "/" in name or not entry.num_bytes:  # the marker of a folder, named without its slash, can't be read
            continue
        data = read_bytes(entry.uri)
        try:
            (folder / name).write_bytes(data)
        except OSError as error:
            raise GateError(f"{folder}: can't be written ({error}); make room, or set TMPDIR") from error
        found = True
    if not found:
        raise FileNotFoundError(f"{uri}: not found, or empty")


def upload_folder(folder: Path, uri: str, *, last: str) -> None:
    """Copies the files of `folder` (not its folders) below `uri`; the file named `last` is written last. Raises InputError
    where the place can't be written, GateError where storage is away or full."""
    for path in sorted(folder.iterdir(), key=lambda path: path.name == last):
        if path.is_file():
            write_bytes(join(uri, path.name), path)
