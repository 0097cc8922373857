import os
import pickle
import re
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import boto3
import pyarrow as pa
import pytest
from botocore.exceptions import EndpointConnectionError
from obstore.exceptions import BaseError, GenericError, UnauthenticatedError

from jobs.platform import s3, storage
from jobs.platform.parquet import DamagedParquet, open_parquet, parquet_files, read_row_group, read_table, write_table
from jobs.platform.ranges import RangeReader, open_ranges
from jobs.platform.storage import StoredObject
from jobs.platform.storage_errors import explain, failure_of, may_pass
from jobs.platform.uris import absolute, beside, is_s3, join
from jobs.training.checkpoints import ray_storage
from schemas.errors import GateError, InputError


@pytest.fixture
def folder(place: str) -> str:
    return f"{place}/folder"


def test_bytes_come_back_as_written_under_odd_names(folder: str) -> None:
    uri = join(folder, "a b", "c%20é<&>.txt")
    storage.write_bytes(uri, b"photo")
    assert storage.read_bytes(uri) == b"photo"
    assert [(entry.uri, entry.num_bytes) for entry in storage.list_objects(folder)] == [(uri, 5)]


class _CuttingStore:
    """Lists six keys in pages of two; every other answer breaks off before its second page."""

    def __init__(self) -> None:
        self.num_asked = 0

    def list(self, prefix: str | None, *, offset: str | None, chunk_size: int) -> Iterator[list[dict]]:
        self.num_asked += 1
        keys = [key for key in "abcdef" if offset is None or key > offset]
        for start in range(0, len(keys), 2):
            if start and self.num_asked % 2:
                raise BaseError("Error getting list response body: HTTP error: request or response body error")
            yield [{"path": key, "size": 1, "e_tag": None} for key in keys[start : start + 2]]


def test_a_listing_cut_short_goes_on_after_its_last_key(monkeypatch: pytest.MonkeyPatch) -> None:
    store = _CuttingStore()
    monkeypatch.setattr(storage, "locate", lambda uri, anonymous: (store, ""))
    assert [entry.uri for entry in storage.list_objects("s3://bins")] == [f"s3://bins/{key}" for key in "abcdef"]
    assert store.num_asked == 2


def test_a_try_whether_a_folder_can_be_written_leaves_nothing_there(place: str) -> None:
    storage.check_writable(f"{place}/not/there/yet")
    assert list(storage.list_objects(place)) == []
    if not is_s3(place):
        assert list(Path(place).iterdir()) == []
    storage.write_bytes(f"{place}/night/summary.parquet", b"committed")
    storage.check_writable(f"{place}/night")
    assert [entry.uri for entry in storage.list_objects(place)] == [f"{place}/night/summary.parquet"]
    if not is_s3(place):
        with pytest.raises(InputError, match=r"summary\.parquet/_writable: can't be written"):
            storage.check_writable(f"{place}/night/summary.parquet")


def test_only_one_of_two_creates_an_object(folder: str) -> None:
    uri = join(folder, "lock")
    assert storage.create_bytes(uri, b"first")
    assert not storage.create_bytes(uri, b"second")
    assert storage.read_bytes(uri) == b"first"


class _Contested(BaseHTTPRequestHandler):
    """Answers to conditional writes, one after the other: the last one again and again."""

    answers: ClassVar[list[tuple[int, str]]] = []

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        status, code = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        self.send_response(status)
        self.send_header("ETag", '"e"')
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code></Error>".encode()
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.mark.parametrize(
    ("answers", "created"),
    [
        ([(409, "ConditionalRequestConflict"), (200, "")], True),
        ([(409, "OperationAborted"), (412, "PreconditionFailed")], False),
        ([(409, "")], False),
        ([(409, "ConditionalRequestConflict")], None),
    ],
)
def test_a_conflict_of_two_writes_is_no_object_that_is_there(
    monkeypatch: pytest.MonkeyPatch, answers: list[tuple[int, str]], created: bool | None
) -> None:
    monkeypatch.setattr(_Contested, "answers", answers)
    monkeypatch.setattr(storage.time, "sleep", lambda seconds: None)
    with ThreadingHTTPServer(("127.0.0.1", 0), _Contested) as server:
        threading.Thread(target=server.serve_forever).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        uri = f"s3://bucket-{server.server_port}/counted/1.parquet"
        try:
            if created is None:
                with pytest.raises(GateError, match=r"can't be written .*<Code>ConditionalRequestConflict</Code>\)"):
                    storage.create_bytes(uri, b"1")
            else:
                assert storage.create_bytes(uri, b"1") == created
        finally:
            server.shutdown()


def test_what_is_absent_is_said_to_be_absent(folder: str) -> None:
    uri = join(folder, "nothing")
    assert not storage.exists(uri)
    assert list(storage.list_objects(uri)) == []
    storage.delete([uri])
    with pytest.raises(FileNotFoundError, match="nothing"):
        storage.read_bytes(uri)


def test_many_are_deleted_at_once_whichever_is_gone_already(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "MOST_DELETED", 30)
    uris = [join(folder, f"{number:02d}") for number in range(70)]
    for uri in uris[1:]:
        storage.write_bytes(uri, b"")
    store, asked = storage.locate(folder)[0], []

    class Counting:
        def delete(self, keys: str | list[str]) -> None:
            asked.append(keys)
            store.delete(keys)

    counting = Counting()
    locate = storage.locate
    monkeypatch.setattr(storage, "locate", lambda uri, **given: (counting, locate(uri, **given)[1]))
    storage.delete(iter(uris[30:]))
    assert [len(keys) for keys in asked] == [30, 10]
    storage.delete(uris[:30])
    monkeypatch.undo()
    assert list(storage.list_objects(folder)) == []


def test_a_table_is_read_back_whole_or_by_row_group(folder: str) -> None:
    uri = join(folder, "t", "part.parquet")
    table = pa.table({"bin_id": [str(n) for n in range(1000)]})
    write_table(uri, table, row_group_size=100)
    assert read_table(uri).equals(table)
    parquet = open_parquet(uri)
    assert parquet.metadata.num_row_groups == 10
    assert parquet.read_row_group(9).equals(table.slice(900))
    assert [entry.uri for entry in parquet_files(join(folder, "t"))] == [uri]


def test_of_a_file_with_many_row_groups_the_footer_is_read_once(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = join(folder, "worklist.parquet")
    numbers = pa.table({"number": range(1000)})
    write_table(uri, numbers, row_group_size=1)
    read, sizes = RangeReader.read, []

    def measured(self: RangeReader, size: int = -1) -> bytes:
        data = read(self, size)
        sizes.append(len(data))
        return data

    monkeypatch.setattr(RangeReader, "read", measured)
    assert read_row_group(uri, 7).equals(numbers.slice(7, 1))
    assert sum(sizes) > 10_000
    sizes.clear()
    assert read_row_group(uri, 990).equals(numbers.slice(990, 1))
    assert sum(sizes) < 1_000
    write_table(uri, numbers.slice(500), row_group_size=2)
    assert read_row_group(uri, 7).equals(numbers.slice(514, 2))


@pytest.mark.s3
def test_an_object_that_is_overwritten_while_it_is_read_is_not_mixed_with_the_new_one(bucket: str) -> None:
    uri = f"{bucket}/export.csv"
    storage.write_bytes(uri, b"a" * 100)
    ranges = open_ranges(uri)
    assert ranges.read(50) == b"a" * 50
    storage.write_bytes(uri, b"b" * 100)
    with pytest.raises(InputError, match="was written or overwritten while it was read"):
        ranges.read(50)


def test_a_local_file_that_grows_while_it_is_read_is_not_taken_for_whole(tmp_path: Path) -> None:
    path = tmp_path / "export.csv"
    path.write_bytes(b"a" * 100)
    ranges = open_ranges(str(path))
    with path.open("ab") as file:
        file.write(b"a" * 100)
    with pytest.raises(InputError, match="was written or overwritten while it was read"):
        ranges.read()


@pytest.mark.parametrize("left", [b"a" * 40, None])
def test_a_local_file_that_is_cut_short_or_gone_while_it_is_read_was_overwritten(
    tmp_path: Path, left: bytes | None
) -> None:
    path = tmp_path / "export.csv"
    path.write_bytes(b"a" * 100)
    ranges = open_ranges(str(path))
    assert ranges.read(50) == b"a" * 50
    path.unlink() if left is None else path.write_bytes(left)
    with pytest.raises(InputError, match="was written or overwritten while it was read"):
        ranges.read(50)


def test_a_copy_of_a_local_file_is_the_same_version_and_a_new_one_is_not(tmp_path: Path) -> None:
    path, copy = tmp_path / "part.parquet", tmp_path / "copy"
    path.write_bytes(b"a" * 100)
    before = storage.find_object(str(path))
    shutil.copy2(path, copy)
    copy.replace(path)
    again = storage.find_object(str(path))
    assert again.etag != before.etag and again.version == before.version
    os.utime(path, (0, 0))
    assert storage.find_object(str(path)).version != before.version
    assert StoredObject("s3://b/k", 1, "1-2").version != StoredObject("s3://b/k", 1, "3-2").version


def test_a_folder_s_marker_among_a_bundle_s_files_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "bundle.json").write_text("{}")
    listed = storage.list_objects

    def with_marker(uri: str) -> Iterator[StoredObject]:  # as obstore names one of S3's
        yield from listed(uri)
        yield StoredObject(f"{uri}/2026-12.training", 0, "d41d8cd98f00b204e9800998ecf8427e")

    monkeypatch.setattr(storage, "list_objects", with_marker)
    (tmp_path / "copy").mkdir()
    storage.download_folder(str(tmp_path / "bundle"), tmp_path / "copy")
    assert [path.name for path in (tmp_path / "copy").iterdir()] == ["bundle.json"]


def test_a_server_without_conditional_writes_is_named_as_the_wrong_place(tmp_path: Path) -> None:
    answer = GenericError("Generic S3 error: <Code>NotImplemented</Code><Message>If-None-Match</Message>")
    assert isinstance(failure_of("s3://b/locks/0.json", "written", answer), InputError)


def test_a_file_that_is_no_parquet_is_named(folder: str) -> None:
    uri = join(folder, "t.parquet")
    storage.write_bytes(uri, b"bin_id,sku\n1,2\n")
    with pytest.raises(DamagedParquet, match=r"t\.parquet.*expected a Parquet file") as caught:
        open_parquet(uri)
    # as on its way from a worker to the driver
    again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 - pickled here
    assert (type(again), str(again)) == (DamagedParquet, str(caught.value))


def test_folders_are_copied_both_ways_and_what_declares_one_whole_goes_last(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, written = storage.write_bytes, []

    def note(uri: str, data: bytes | Path) -> None:
        written.append(uri.rpartition("/")[2])
        write(uri, data)

    monkeypatch.setattr(storage, "write_bytes", note)
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    (source / "weights").write_bytes(b"w")
    (source / "bundle.json").write_bytes(b"{}")
    (source / "a").write_bytes(b"a")
    storage.upload_folder(source, join(folder, "bundle"), last="bundle.json")
    write(join(folder, "bundle", "notes", "b"), b"of somebody else")
    storage.download_folder(join(folder, "bundle"), target)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == {
        "weights": b"w",
        "bundle.json": b"{}",
        "a": b"a",
    }
    assert written[-1] == "bundle.json" and len(written) == 3


def test_a_disk_that_fills_under_a_bundle_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write_bytes(f"{tmp_path}/bundle/weights", b"w")

    def fill(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fill)
    with pytest.raises(GateError, match=r"can't be written \(.*No space left on device\); make room, or set TMPDIR"):
        storage.download_folder(f"{tmp_path}/bundle", tmp_path)


def test_another_scheme_is_an_input_error() -> None:
    with pytest.raises(InputError, match="https:…: expected a local path"):
        absolute("https://example.org/a")


def test_what_lies_beside_a_bucket_would_be_another_bucket() -> None:
    assert beside("s3://stock/bundle/", ".training") == "s3://stock/bundle.training"
    assert beside("/bundle", ".training") == "/bundle.training"
    with pytest.raises(InputError, match="s3://stock: expected a place in the bucket, such as s3://stock/NAME"):
        beside("s3://stock", ".training")


@pytest.mark.s3
def test_without_credentials_the_message_says_what_to_set(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3._known_store.cache_clear()
    with pytest.raises(InputError, match="AWS_ACCESS_KEY_ID"):
        storage.read_bytes(f"{bucket}/key")
    s3._known_store.cache_clear()


def test_half_of_a_key_is_said_to_be_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY", raising=False)
    with pytest.raises(InputError, match="s3://half: AWS credentials: Partial credentials found in env"):
        storage.locate("s3://half/key")


def test_a_profile_s_own_server_is_the_one_that_is_meant(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "config").write_text("[profile minio]\nregion = eu-west-1\nendpoint_url = http://minio:9000\n")
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    assert s3.endpoint() is None
    monkeypatch.setenv("AWS_PROFILE", "minio")
    assert (s3.endpoint(), s3.region()) == ("http://minio:9000", "eu-west-1")
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    assert s3.region() == "eu-north-1"
    (tmp_path / "config").write_text("[profile minio]\nendpoint_url = minio:9000\n")
    s3._profile_endpoint.cache_clear()
    with pytest.raises(InputError, match="AWS settings: Invalid endpoint: minio:9000"):
        s3.endpoint()
    s3._profile_endpoint.cache_clear()


@pytest.mark.parametrize(
    "url",
    [
        *("minio:9000", "HTTP://minio:9000", "http://", "ftp://minio:9000", "http://[::1:9000"),
        *("http://minio:9000\r", "http://minio:9000 ", "http://min io", "http://minio:99999", "http://minio/?a=b"),
        *("http://<minio>:9000", "http://min%20io:9000"),
    ],
)
def test_a_server_that_is_no_url_is_named(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    with pytest.raises(
        InputError, match=re.escape(f"AWS_ENDPOINT_URL: expected http://host:port or https://host, found {url!r}")
    ):
        storage.read_bytes("s3://bucket/key")


@pytest.mark.parametrize("url", ["http://user:hush@minio:9000", "user:hush@minio:9000"])
def test_a_secret_in_a_server_s_url_is_refused_and_not_repeated(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
    with pytest.raises(InputError, match=r"AWS_ENDPOINT_URL_S3: expected .* found one with a user") as raised:
        storage.read_bytes("s3://bucket/key")
    assert "hush" not in str(raised.value)


def test_credentials_that_come_late_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    answers, pauses = [None, SimpleNamespace(method="sso")], []
    monkeypatch.setattr(s3.time, "sleep", pauses.append)
    session = SimpleNamespace(get_credentials=lambda: answers.pop(0))
    s3._check_credentials("bucket", session)  # type: ignore[arg-type]
    assert pauses == [0.5] and not answers


def test_a_source_of_credentials_that_is_away_is_no_wrong_permission(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gone = UnauthenticatedError(
        "Error performing GET: External AWS credential provider failed: EndpointConnectionError"
    )

    class Store:
        def __init__(self) -> None:
            self.asked = 0

        def get(self, key: str) -> None:
            self.asked += 1
            raise gone

        head = put = get

        def list(self, *_: object, **__: object) -> None:
            self.get("")

    store = Store()
    monkeypatch.setattr(storage, "locate", lambda uri, anonymous=False: (store, "key"))
    monkeypatch.setattr(storage.time, "sleep", lambda seconds: None)
    for ask in (storage.read_bytes, storage.exists, lambda uri: list(storage.list_objects(uri))):
        with pytest.raises(
            GateError, match=r"EndpointConnectionError.*; when storage is back, the same command goes on"
        ):
            ask("s3://bucket/key")
    assert store.asked == 2 * storage.CUT_TRIES + 1


@pytest.mark.parametrize(
    ("cause", "passes"),
    [
        ("ClientError: An error occurred (AccessDenied) when calling the AssumeRole operation", False),
        ("UnauthorizedSSOTokenError: The SSOToken has expired", False),
        ("ClientError: An error occurred (Throttling) when calling the AssumeRole operation", True),
        ("TokenRetrievalError: Error when retrieving token from sso: Token has expired and refresh failed", False),
        ("ClientError: An error occurred (502) when calling the AssumeRole operation: Bad Gateway", True),
        ("EndpointConnectionError: Could not connect to the endpoint URL", True),
    ],
)
def test_who_refuses_credentials_for_good_is_not_asked_again(cause: str, passes: bool) -> None:
    error = UnauthenticatedError(f"Error performing GET: External AWS credential provider failed: {cause}")
    assert may_pass(error) == passes
    assert isinstance(failure_of("s3://b/k", "read", error), GateError) == passes


def test_s3_s_own_reason_is_told() -> None:
    answer = "<?xml version='1.0'?>\n<Error><Code>ExpiredToken</Code><Message>The token has expired</Message></Error>"
    told = explain(GenericError(f"Server returned non-2xx status code: 400 Bad Request: {answer}"))
    assert told == "GenericError: Server returned non-2xx status code: 400 Bad Request: <Code>ExpiredToken</Code>"


@pytest.mark.s3
def test_a_folder_s_own_marker_is_not_in_it(bucket: str) -> None:
    boto3.client("s3").put_object(Bucket=bucket.removeprefix("s3://"), Key="export.parquet/", Body=b"")
    storage.write_bytes(f"{bucket}/export.parquet/0.parquet", b"1")
    assert [entry.uri for entry in storage.list_objects(f"{bucket}/export.parquet")] == [
        f"{bucket}/export.parquet/0.parquet"
    ]


class _Amazon(BaseHTTPRequestHandler):
    """Says where the buckets are, as Amazon does of those that may not be read, too. No other server here knows regions."""

    def do_HEAD(self) -> None:
        found = {"/mine": (200, "eu-central-1"), "/theirs": (403, "us-east-1"), "/moved": (301, "ap-south-1")}
        found |= {"/busy": (503, None)}
        status, region = found.get(self.path, (404, None))
        self.send_response(status)
        if region:
            self.send_header("x-amz-bucket-region", region)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.mark.parametrize("anonymous", [False, True])
def test_a_bucket_is_asked_for_where_it_lies(monkeypatch: pytest.MonkeyPatch, anonymous: bool) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    monkeypatch.setattr(s3, "_guessed", {})
    s3._known_store.cache_clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), _Amazon) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
            assert s3._ask_region("mine", anonymous) == "eu-west-1", "a server of one's own"
            monkeypatch.setattr(s3, "endpoint", lambda: None)
            found = [s3._ask_region(name, anonymous) for name in ("mine", "theirs", "moved", "unknown")]
            busy = s3.open_bucket("busy", anonymous=anonymous)
            _, checkpoints = ray_storage("s3://mine/bundle.training")
        finally:
            server.shutdown()
    assert found == ["eu-central-1", "us-east-1", "ap-south-1", "eu-west-1"]
    assert checkpoints.region == "eu-central-1"
    assert (busy.config["region"], list(s3._guessed)) == ("eu-west-1", [("busy", anonymous)])


def test_a_region_that_could_not_be_asked_for_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    monkeypatch.setattr(s3, "_guessed", {})
    monkeypatch.setattr(s3, "GUESS_SECONDS", 0.0)
    monkeypatch.setattr(s3, "_ask_region", _refuse)
    guess, _ = storage.locate("s3://asked-again/key", anonymous=True)
    again, _ = storage.locate("s3://asked-again/key", anonymous=True)
    assert again is guess
    monkeypatch.setattr(s3, "_ask_region", lambda bucket, anonymous: "ap-south-1")
    known, _ = storage.locate("s3://asked-again/key", anonymous=True)
    assert (guess.config["region"], known.config["region"]) == ("eu-west-1", "ap-south-1")


def _refuse(bucket: str, anonymous: bool) -> str:
    raise EndpointConnectionError(endpoint_url=f"https://{bucket}")


def test_nothing_is_written_where_it_would_go_with_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unpacked = tmp_path / "session" / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    unpacked.mkdir(parents=True)
    monkeypatch.chdir(unpacked)
    for write in (storage.write_bytes, storage.create_bytes):
        with pytest.raises(InputError, match=r"audits/run: expected s3://… or an absolute path that every node has"):
            write("audits/run", b"1")
    assert list(unpacked.iterdir()) == []
    storage.write_bytes(str(tmp_path / "audits" / "run"), b"1")


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("", "an empty text"),
        ("s3://", "no bucket"),
        ("s3:///key", "no bucket"),
        ("s3://stock//audits", "found ''"),
        ("s3://stock/a/../b", "found '..'"),
        ("s3://stock/a\tb", "a\\\\tb"),
        ("s3://stock/a\x7fb", "without control characters, found '\\\\x7f'"),
        ("/audits/M\udcfcnchen", "expected UTF-8 .*found '\\\\udcfc'; rename what stands there"),
        ("file:///audits/a%00b", "found '\\\\x00'"),
        (
            "https://bob:hunter2@stock/audits",
            "https:…: expected a local path, file:///path or s3://bucket/key, found none of them",
        ),
        ("s3:/stock/audits", "s3:…: expected a local path, file:///path or s3://bucket/key"),
        ("S3A://stock/audits", "S3A:…: expected a local path"),
        ("file:/audits", "file:…: expected a local path, file:///path"),
        ("file://localhost/audits", "file:…: expected a local path, file:///path"),
        ("file://audits", "file:…: expected a local path, file:///path"),
        ("s3://my stock/audits", "letters, digits, ., _ and - in the bucket's name, found 'my stock'"),
        ("s3://<bucket>/audits", "found '<bucket>'"),
        ("s3://KEY:hunter2@stock/audits", "credentials in it"),
        ("s3://KEY:hunter/2@stock/audits", "credentials in it"),
    ],
)
def test_a_uri_that_names_no_place_or_another_one_in_listings_is_refused(uri: str, said: str) -> None:
    with pytest.raises(InputError, match=re.escape(said) if "\\" not in said else said) as refused:
        absolute(uri)
    assert "hunter" not in str(refused.value)
    if is_s3(uri) and "bucket's name" in said:
        with pytest.raises(InputError, match=re.escape(said)):
            storage.read_bytes(uri)


def test_a_file_s_uri_is_the_path_in_it() -> None:
    assert absolute("file:///audits/a%20b") == "/audits/a b"
    assert absolute("/audits/12:30") == "/audits/12:30"


def test_a_loop_of_folders_is_a_wrong_place(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path)
    with pytest.raises(InputError, match=r"File system loop.*; check the place"):
        list(storage.list_objects(str(tmp_path)))


@pytest.mark.parametrize("name", ["counts.csv#1", "/"])
def test_a_name_that_obstore_keeps_for_itself_is_a_wrong_place(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"Filenames containing trailing.*; check the place"):
        storage.read_bytes(str(tmp_path / name))


def test_a_loop_of_links_is_a_wrong_place(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    for use in (storage.read_bytes, lambda uri: storage.write_bytes(uri, b"1")):
        with pytest.raises(InputError, match=r"Too many levels of symbolic links.*; check the place"):
            use(f"{tmp_path}/a/run.json")


def test_listings_name_objects_as_absolute_does(tmp_path: Path) -> None:
    folder = absolute(f"/{tmp_path}//folder/")
    assert folder == f"{tmp_path}/folder"
    storage.write_bytes(join(folder, "a"), b"")
    assert [entry.uri for entry in storage.list_objects(folder)] == [f"{folder}/a"]
    assert absolute("s3://stock/audits//") == "s3://stock/audits"


def test_a_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    uri = str(tmp_path / "table.parquet")
    write_table(uri, pa.table({"number": list(range(100_000))}))
    data = bytearray(storage.read_bytes(uri))
    data[4:2000] = bytes(1996)
    storage.write_bytes(uri, bytes(data))
    with pytest.raises(InputError, match=r"table\.parquet: expected a Parquet file"):
        read_table(uri)
    with pytest.raises(DamagedParquet, match=r"table\.parquet: expected a Parquet file"):
        read_row_group(uri, 0)
    data[-200:-8] = b"\xff" * 192
    storage.write_bytes(uri, bytes(data))
    with pytest.raises(InputError, match=r"table\.parquet: expected a Parquet file"):
        open_parquet(uri)


def test_checkpoints_by_a_profile_that_assumes_a_role_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    role = "[profile stock]\nrole_arn = arn:aws:iam::123456789012:role/r\nsource_profile = keys\n"
    keys = "[profile keys]\naws_access_key_id = a\naws_secret_access_key = b\n"
    (tmp_path / "config").write_text(role + keys)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "stock")
    with pytest.raises(
        InputError, match=r"s3://of-a-role/b: expected AWS settings that Arrow.* found a profile that assumes a"
    ):
        ray_storage("s3://of-a-role/b")
    monkeypatch.setenv("AWS_PROFILE", "keys")
    assert ray_storage("s3://of-a-role/b")[0] == "of-a-role/b"


def test_a_misspelt_profile_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "no-such-profile")
    with pytest.raises(InputError, match="no-such-profile"):
        storage.locate("s3://a-bucket-of-nobody/key")


class _BreakingStore(_CuttingStore):
    """Every answer breaks off after its first page."""

    def list(self, prefix: str | None, *, offset: str | None, chunk_size: int) -> Iterator[list[dict]]:
        self.num_asked = 0
        return super().list(prefix, offset=offset, chunk_size=chunk_size)


def test_a_listing_that_gets_on_is_not_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "CUT_TRIES", 2)
    monkeypatch.setattr(storage, "locate", lambda uri, anonymous: (_BreakingStore(), ""))
    assert [entry.uri for entry in storage.list_objects("s3://bins")] == [f"s3://bins/{key}" for key in "abcdef"]
