"""S3 over a line, and from a server, that no test can have of the real one: slow, stalled, with a certificate of its own."""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from pyarrow.fs import FileType

from jobs.platform import s3, storage
from jobs.training.trainer import ray_storage
from schemas.errors import GateError, InputError
from tests.conftest import free_port

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


@pytest.mark.parametrize(
    ("bucket", "region", "setting", "endpoint"),
    [
        ("bins", "us-east-1", None, "https://bins.s3.us-east-1.amazonaws.com"),
        ("bins", "eu-west-1", None, "https://bins.s3.eu-west-1.amazonaws.com"),
        ("b.ins", "eu-west-1", None, "https://s3.eu-west-1.amazonaws.com"),  # no certificate names it
        ("bins", "cn-north-1", None, "https://bins.s3.cn-north-1.amazonaws.com.cn"),
        ("bins", "us-east-1", "AWS_USE_FIPS_ENDPOINT", "https://bins.s3-fips.us-east-1.amazonaws.com"),
        ("bins", "eu-west-1", "AWS_USE_DUALSTACK_ENDPOINT", "https://bins.s3.dualstack.eu-west-1.amazonaws.com"),
    ],
)
def test_a_bucket_of_aws_is_asked_for_where_boto_would(
    monkeypatch: pytest.MonkeyPatch, bucket: str, region: str, setting: str | None, endpoint: str
) -> None:
    monkeypatch.setattr(s3, "endpoint", lambda: None)
    if setting:
        monkeypatch.setenv(setting, "true")
    store = s3._open_store(bucket, True, region)
    assert store.config["endpoint"] == endpoint
    in_host = store.config.get("virtual_hosted_style_request") in (True, "true")
    assert in_host == (bucket == "bins")


def test_a_bucket_in_a_server_s_name_is_not_in_the_path_too(monkeypatch: pytest.MonkeyPatch) -> None:
    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append((self.headers["Host"], self.path))
            self.send_error(404)

        def log_message(self, format: str, *args: object) -> None:
            pass

    asked: list[tuple[str, str]] = []
    monkeypatch.setattr(s3, "endpoint", lambda: None)
    monkeypatch.setattr(s3, "_aws_server", lambda region: "http://s3.cn-north-1.amazonaws.com.cn")
    with serving(Proxy) as proxy:
        monkeypatch.setitem(s3.LIMITS, "proxy_url", f"http://127.0.0.1:{proxy.server_port}")
        monkeypatch.setitem(s3.LIMITS, "allow_http", True)
        for bucket in ("bins", "b.ins"):
            with pytest.raises(FileNotFoundError):
                s3._open_store(bucket, True, "cn-north-1").get("photos/1.jpg")
    at = "s3.cn-north-1.amazonaws.com.cn"
    assert asked == [
        (f"bins.{at}", f"http://bins.{at}/photos/1.jpg"),
        (at, f"http://{at}/b.ins/photos/1.jpg"),
    ]


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("AWS_REGION", "us-east-1\r", r"AWS_REGION.*expected one like eu-west-1, found 'us-east-1\\r'"),
        ("AWS_ACCESS_KEY_ID", "hush\r", r"AWS_ACCESS_KEY_ID \(env\): expected visible ASCII characters"),
        ("AWS_ACCESS_KEY_ID", "húsh", r"AWS_ACCESS_KEY_ID \(env\)"),
        ("AWS_SECRET_ACCESS_KEY", "hush\r", r"AWS_SECRET_ACCESS_KEY \(env\)"),
        ("AWS_SESSION_TOKEN", "hush\r", r"AWS_SESSION_TOKEN \(env\)"),
    ],
)
def test_a_setting_that_no_header_could_hold_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=said) as refused:
        storage.read_bytes(f"s3://bucket-{uuid.uuid4().hex[:8]}/key")
    assert name == "AWS_REGION" or value.rstrip() not in str(refused.value), "it is a secret"


def test_credentials_that_were_exported_and_have_expired_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token")
    monkeypatch.setenv("AWS_CREDENTIAL_EXPIRATION", "2026-01-01T00:00:00Z")
    with pytest.raises(InputError, match=r"AWS credentials: .*expired"):
        storage.read_bytes(f"s3://bucket-{uuid.uuid4().hex[:8]}/key")


@pytest.fixture
def certified(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """The certificate of an authority of one's own (PEM), and a place on a server whose certificate it has signed."""

    class Full(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200)
            headers = {"Content-Length": "5", "ETag": '"e"', "Last-Modified": "Sat, 28 Nov 2026 10:00:00 GMT"}
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    def openssl(*arguments: str) -> None:
        new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
        subprocess.run(["openssl", "req", "-x509", *new, *arguments], cwd=tmp_path, check=True, capture_output=True)

    openssl("-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=authority")
    signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-addext", "basicConstraints=critical,CA:FALSE")
    openssl("-keyout", "key.pem", "-out", "c.pem", "-subj", "/CN=s3", "-addext", "subjectAltName=IP:127.0.0.1", *signed)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "c.pem", tmp_path / "key.pem")
    with serving(Full) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        yield tmp_path / "ca.pem", f"https://127.0.0.1:{server.server_port}"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl here to sign certificates with")
@pytest.mark.parametrize("named_by", ["environment", "profile", None])
def test_a_server_with_a_certificate_of_one_s_own(
    monkeypatch: pytest.MonkeyPatch, certified: tuple[Path, str], tmp_path: Path, named_by: str | None
) -> None:
    ca, endpoint = certified
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setitem(s3.RETRIES, "retry_timeout", timedelta(seconds=0.5))
    several = tmp_path / "several.pem"
    several.write_bytes((tmp_path / "c.pem").read_bytes() + ca.read_bytes())
    if named_by == "environment":
        monkeypatch.setenv("AWS_CA_BUNDLE", str(several))
    elif named_by == "profile":
        (tmp_path / "config").write_text(f"[default]\nca_bundle = {several}\n")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    uri = f"s3://bucket-{uuid.uuid4().hex[:8]}/key"
    if named_by:
        assert storage.exists(uri)
        _, checkpoints = ray_storage(uri)
        assert checkpoints is not None and checkpoints.get_file_info(uri.removeprefix("s3://")).type == FileType.File
    else:
        with pytest.raises(
            InputError,
            match=r"error sending request: InvalidCertificate\(UnknownIssuer\); AWS_CA_BUNDLE names .* check the",
        ):
            storage.exists(uri)


@pytest.mark.parametrize("content", [None, "", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_a_file_of_certificates_that_is_none_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str | None
) -> None:
    if content is not None:
        (tmp_path / "ca.pem").write_text(content)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "ca.pem"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://127.0.0.1:{free_port()}")
    with pytest.raises(InputError, match=r"AWS_CA_BUNDLE: expected a file of certificates \(PEM\), found .*ca\.pem: "):
        storage.exists(f"s3://bucket-{uuid.uuid4().hex[:8]}/key")


def test_why_a_connection_failed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(s3.RETRIES, "retry_timeout", timedelta(seconds=0.5))
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(GateError, match=r"error sending request: Connection refused\); when storage is back"):
        storage.exists(f"s3://bucket-{uuid.uuid4().hex[:8]}/key")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://no-such-host.invalid:9000")
    with pytest.raises(GateError, match=r"error sending request: failed to lookup address information"):
        storage.exists(f"s3://bucket-{uuid.uuid4().hex[:8]}/key")
