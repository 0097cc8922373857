"""A stored object as the seekable file that pyarrow and Python's readers want."""

from __future__ import annotations

import io

from obstore.exceptions import BaseError, PreconditionError

from jobs.platform import storage
from jobs.platform.storage import StoredObject
from jobs.platform.storage_errors import failure_of
from jobs.platform.uris import is_s3
from schemas.errors import InputError


def open_ranges(uri: str, *, anonymous: bool = False) -> io.RawIOBase:
    """A stored object as a seekable file: one range request a read. Raises FileNotFoundError where it is not there."""
    return RangeReader(storage.find_object(uri, anonymous=anonymous), anonymous=anonymous)


class RangeReader(io.RawIOBase):
    """A stored object as the seekable file that pyarrow wants: one range request a read."""

    def __init__(self, found: StoredObject, *, anonymous: bool = False) -> None:
        self._uri, self._size, self._position = found.uri, found.num_bytes, 0
        self._anonymous = anonymous
        # of an object that is overwritten meanwhile a reader would mix old ranges with new ones. A local file's ETag holds its
        # inode, which some mounts number anew: there the size tells, above all of a file that is still being written
        self._condition = {"if_match": found.etag} if is_s3(found.uri) and found.etag else {}

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        stop = self._size if size < 0 else min(self._size, self._position + size)
        if stop <= self._position:
            return b""
        store, key = storage.locate(self._uri, anonymous=self._anonymous)
        try:
            options = {"range": (self._position, stop), **self._condition}
            answer = store.get(key, options=options)  # type: ignore[arg-type]
            data = bytes(answer.bytes())
        except PreconditionError as error:
            raise self._changed() from error
        except (BaseError, OSError) as error:
            # of a local file that was cut short, or is gone, the range can't be read
            if not is_s3(self._uri) and getattr(storage.describe(self._uri), "num_bytes", None) != self._size:
                raise self._changed() from error
            raise failure_of(self._uri, "read", error) from error
        if answer.meta["size"] != self._size:
            raise self._changed()
        self._position = stop
        return data

    def _changed(self) -> InputError:
        return InputError(f"{self._uri}: was written or overwritten while it was read; run the same command again")
