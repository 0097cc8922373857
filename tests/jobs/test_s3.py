"""S3 over a line, and from a server, that no test can have of the real one: slow, stalled, with a certificate of its own."""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from jobs.platform import s3, storage
from schemas.errors import GateError

MIB = 1 << 20


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        server.block_on_close = False  # on what a test lets stall
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class _Line(BaseHTTPRequestHandler):
    """Holds one object; takes and gives `bytes_a_second` over all connections together, nothing more after `stalls_after`."""

    protocol_version = "HTTP/1.1"
    body = os.urandom(MIB) * 40
    bytes_a_second = 16e6
    stalls_after: int | None = None
    moved = 0
    free_at = 0.0
    lock = threading.Lock()

    def do_POST(self) -> None:
        self._take()
        begun = b"<InitiateMultipartUploadResult><Bucket/><Key/><UploadId>u</UploadId></InitiateMultipartUploadResult>"
        ended = b"<CompleteMultipartUploadResult><ETag>e</ETag></CompleteMultipartUploadResult>"
        self._give(200, begun if "uploads" in self.path else ended)

    def do_PUT(self) -> None:
        self._take()
        self._give(200, b"")

    def do_DELETE(self) -> None:
        self._give(200, b"")

    def do_GET(self) -> None:
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        self._give(206 if start else 200, self.body[start:], f"bytes {start}-{len(self.body) - 1}/{len(self.body)}")

    def _take(self) -> None:
        left = int(self.headers.get("Content-Length", 0))
        while left:
            part = len(self.rfile.read(min(left, 1 << 15)))
            left -= part
            self._pace(part)

    def _give(self, status: int, body: bytes, content_range: str = "") -> None:
        self.send_response(status)
        self.send_header("ETag", '"e"')
        self.send_header("Last-Modified", "Sat, 28 Nov 2026 10:00:00 GMT")
        self.send_header("Content-Length", str(len(body)))
        if status == 206:
            self.send_header("Content-Range", content_range)
        self.end_headers()
        try:
            for start in range(0, len(body), 1 << 15):
                part = body[start : start + (1 << 15)]
                self._pace(len(part))
                self.wfile.write(part)
        except OSError:
            self.close_connection = True  # who asked has given up

    def _pace(self, num_bytes: int) -> None:
        line = type(self)
        with self.lock:
            line.moved += num_bytes
            stalled = self.stalls_after is not None and self.moved > self.stalls_after
            line.free_at = max(line.free_at, time.monotonic() - 0.02) + num_bytes / self.bytes_a_second
            pause = line.free_at - time.monotonic()
        time.sleep(3600 if stalled else max(0.0, pause))

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[type[_Line], str]]:
    """A line a hundred times faster than one of 1.3 Mbit/s, with a sixtieth of the patience; an object at its other end."""
    slow = type("Line", (_Line,), {"lock": threading.Lock()})
    monkeypatch.setitem(s3.RETRIES, "retry_timeout", timedelta(seconds=2))
    monkeypatch.setitem(s3.LIMITS, "timeout", "10s")
    monkeypatch.setitem(s3.LIMITS, "read_timeout", "1s")
    with serving(slow) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        yield slow, f"s3://bucket-{uuid.uuid4().hex[:8]}/bundle/weights"


def test_a_bundle_comes_and_goes_over_a_slow_line(line: tuple[type[_Line], str], tmp_path: Path) -> None:
    slow, uri = line
    (tmp_path / "weights").write_bytes(slow.body)
    storage.write_bytes(uri, tmp_path / "weights")
    assert slow.moved < 1.1 * len(slow.body), "no part was sent twice"
    slow.moved = 0
    assert storage.read_bytes(uri) == slow.body
    assert slow.moved < 1.1 * len(slow.body), "nothing came twice"


@pytest.mark.parametrize("way", ["up", "down"])
def test_a_line_on_which_nothing_comes_any_more_is_given_up(
    line: tuple[type[_Line], str], way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, uri = line
    monkeypatch.setattr(slow, "stalls_after", 20 * MIB)
    started = time.monotonic()
    with pytest.raises(GateError, match="when storage is back, the same command goes on"):
        storage.write_bytes(uri, slow.body) if way == "up" else storage.read_bytes(uri)
    assert time.monotonic() - started < 8
