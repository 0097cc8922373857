"""The endpoint over real HTTP on a real Ray Serve: answers, errors, limits, token, metrics, shutting down."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from jobs import serve as serve_job
from jobs.config.serve import EndpointSettings, ServeConfig
from jobs.serving import uploads
from jobs.serving.app import APP_NAME, build_app, learn_current_belief
from jobs.serving.batching import Batcher
from jobs.serving.counter import Counter
from jobs.serving.front import Front, FrontSettings
from jobs.serving.gate import Room
from jobs.serving.metrics import merge_pages
from jobs.serving.problems import Problem
from jobs.stages.resources import CPU_BATCH, resolve_precision
from model.bundle_files import read_bundle_info
from schemas.errors import GateError, InputError
from tests.dump import photo, write_bundle
from tests.night import write_nights

TOKEN = "a token that is long enough"
MAX_BODY = 200_000


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> dict:
        return json.loads(self.body)


@dataclass(frozen=True)
class Client:
    port: int

    def ask(
        self, method: str, path: str, body: bytes | None = None, *, token: str | None = TOKEN, **headers: str
    ) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=200)
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        if token is not None:
            fields["Authorization"] = f"Bearer {token}"
        try:
            connection.request(method, path, body, fields)
            answer = connection.getresponse()
            return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def count(self, data: bytes, query: str = "", **headers: str) -> Reply:
        return self.ask("POST", f"/v1/count{query}", data, **{"Content_Type": "image/jpeg", **headers})


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import hashlib

    import pyarrow as pa

    from model.bundle_files import TRAINING_IMAGES_SCHEMA

    digests = [hashlib.sha256(photo(5, seed)).hexdigest() for seed in (500, 501)]
    seen = pa.Table.from_pydict(
        {"image_sha256": digests, "bin_id": ["1", "2"], "split": ["train", "test"]}, schema=TRAINING_IMAGES_SCHEMA
    )
    return write_bundle(tmp_path_factory.mktemp("bundle"), seen=seen)


@pytest.fixture(scope="module")
def audits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two committed nights, the first of them counted; of late, as what is learned comes from the last thirty days."""
    output = tmp_path_factory.mktemp("audits")
    today = datetime.now(UTC).date()
    write_nights(output, [(today - timedelta(days=days)).isoformat() for days in (2, 1)], num_bins=300)
    return output


@pytest.fixture(scope="module")
def client(ray_cluster: None, bundle: Path, audits: Path) -> Iterator[Client]:
    from ray import serve

    with pytest.MonkeyPatch.context() as patch, socket.socket() as probe:
        patch.setenv("STOCK_AUDIT_TOKEN", TOKEN)
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        serve_job.start_endpoint(
            ServeConfig(
                bundle_uri=str(bundle),
                output_uri=str(audits),
                port=port,
                max_waiting=24,
                max_body_bytes=MAX_BODY,
                request_timeout_s=120,
            )
        )
    yield Client(port)
    serve.shutdown()


def _scores(bundle: Path, photos: list[bytes]) -> np.ndarray:
    from model.bundle import load_bundle
    from model.images import decode_image
    from model.scoring import Scorer

    loaded = load_bundle(bundle)
    scorer = Scorer(loaded, device="cpu", precision=resolve_precision("auto", "cpu", loaded.info), batch_size=CPU_BATCH)
    return scorer.score(np.stack([decode_image(data, loaded.info.preprocessing) for data in photos]))


def _form(files: list[tuple[str, bytes]], **fields: list[str]) -> tuple[bytes, str]:
    parts = [
        f'--edge\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, values in fields.items()
        for value in values
    ]
    parts += [
        f'--edge\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
        f"Content-Type: image/jpeg\r\n\r\n".encode()
        + data
        + b"\r\n"
        for name, data in files
    ]
    return b"".join(parts) + b"--edge--\r\n", "multipart/form-data; boundary=edge"


def _problem(reply: Reply, status: int, cause: str) -> dict:
    assert reply.status == status, reply.body[:500]
    assert reply.headers["content-type"] == "application/problem+json"
    details = reply.json()
    assert (details["type"], details["status"]) == (f"urn:stock-audit:{cause}", status)
    assert details["request_id"] == reply.headers["x-request-id"]
    return details


def _logs() -> Path:
    import ray

    return Path(ray._private.worker._global_node.get_logs_dir_path()) / "serve"


def _noted(request_id: str) -> dict:
    """What the gate logs of a request."""
    deadline = time.monotonic() + 20
    found: list[dict] = []
    while not found and time.monotonic() < deadline:
        lines = [line for path in _logs().glob("replica_*Front*.log") for line in path.read_text().splitlines()]
        found = [entry for entry in map(json.loads, lines) if entry.get("request_id") == request_id]
        time.sleep(0.2)
    return found[0]


# --- with a running endpoint -------------------------------------------------------------------------------------


@pytest.mark.ray
def test_answers_are_those_of_the_audit_alone_and_in_company(client: Client, bundle: Path) -> None:
    from model.posterior import camera_columns

    photos = [photo(number % 7, number) for number in range(20)]
    expected = _scores(bundle, photos)
    alone = [client.count(data).json() for data in photos[:3]]
    with ThreadPoolExecutor(10) as pool:
        together = [reply.json() for reply in pool.map(client.count, photos)]
    for answers in (alone, together):
        for answer, row in zip(answers, expected, strict=False):
            np.testing.assert_allclose(answer["probabilities"], row, atol=1e-6)
            camera = camera_columns(row[None], [0], 0.9)
            assert (answer["count"], answer["is_top_class"]) == (
                camera["camera_qty"][0],
                camera["camera_is_top_class"][0],
            )
            assert (answer["qty_low"], answer["qty_high"]) == (camera["qty_low"][0], camera["qty_high"][0])
            assert (answer["p_record_wrong"], answer["reason"], answer["record_model"]) == (None, None, "learned")


@pytest.mark.ray
def test_a_recorded_quantity_gives_the_audits_doubt(client: Client, bundle: Path, audits: Path) -> None:
    from model.bundle_files import read_bundle_info
    from model.posterior import build_assessor

    info = read_bundle_info(bundle)
    belief = learn_current_belief(str(audits), info)
    assessor = build_assessor(info.label_histogram, belief.noise_rate, belief.record_model)
    data = photo(3, 3)
    row = _scores(bundle, [data])
    for record in (0, 3, 6, 40):
        claimed = assessor.assess(row, [record])["p_record_wrong"][0]
        answer = client.count(data, f"?expected_qty={record}").json()
        assert answer["p_record_wrong"] == pytest.approx(claimed, abs=1e-6)
        assert answer["bundle_id"] == info.bundle_id
    body, kind = _form([("a.jpg", data)], expected_qty=["3"])
    in_form = client.ask("POST", "/v1/count", body, Content_Type=kind).json()
    assert in_form == client.count(data, "?expected_qty=3").json()


@pytest.mark.ray
def test_nothing_is_said_about_the_record_by_a_blank_photo_or_one_learned_from(client: Client) -> None:
    blank = client.count(photo(0, 0, kind="PNG")[:0] or _blank(), "?expected_qty=3").json()
    assert (blank["p_record_wrong"], blank["reason"]) == (None, "poor_photo")
    learned = client.count(photo(5, 500), "?expected_qty=3").json()
    assert (learned["p_record_wrong"], learned["reason"]) == (None, "training_photo")
    tested = client.count(photo(5, 501), "?expected_qty=3").json()
    assert tested["reason"] is None and tested["p_record_wrong"] is not None


def _blank() -> bytes:
    import io

    from PIL import Image

    sink = io.BytesIO()
    Image.new("RGB", (64, 64), (90, 90, 90)).save(sink, "PNG")
    return sink.getvalue()


@pytest.mark.ray
@pytest.mark.parametrize(
    ("body", "query", "kind", "status", "cause"),
    [
        (b"", "", "image/jpeg", 422, "unreadable_image"),
        (b"not an image at all", "", "image/jpeg", 422, "unreadable_image"),
        (photo(3, 3)[:-300], "", "image/jpeg", 422, "unreadable_image"),
        (b"x" * (MAX_BODY + 1), "", "image/jpeg", 413, "body_too_large"),
        (photo(3, 3), "", "text/plain", 415, "unsupported_media_type"),
        (photo(3, 3), "", "application/x-www-form-urlencoded", 415, "unsupported_media_type"),
        (photo(3, 3), "?expected_qty=-1", "image/jpeg", 422, "invalid_request"),
        (photo(3, 3), "?expected_qty=NaN", "image/jpeg", 422, "invalid_request"),
        (photo(3, 3), "?expected_qty=2.5", "image/jpeg", 422, "invalid_request"),
        (photo(3, 3), "?expected_qty=99999999999999999999", "image/jpeg", 422, "invalid_request"),
        (_form([("a.jpg", b"")], expected_qty=["-1"])[0], "", "multipart/form-data; boundary=edge", 422, "invalid_request"),
        (_form([])[0], "", "multipart/form-data; boundary=edge", 422, "invalid_request"),
        (_form([("a.jpg", photo(3, 3))], file=["text"])[0], "", "multipart/form-data; boundary=edge", 422, "invalid_request"),
    ],
    ids=[
        "empty", "text", "truncated", "too-large", "type", "curl-default", "negative", "nan", "fraction", "huge",
        "negative-in-form", "no-file", "text-for-a-file",
    ],
)  # fmt: skip
def test_errors_are_typed(client: Client, body: bytes, query: str, kind: str, status: int, cause: str) -> None:
    _problem(client.ask("POST", f"/v1/count{query}", body, Content_Type=kind), status, cause)


@pytest.mark.ray
def test_a_broken_form_and_an_unknown_path_are_problems_too(client: Client) -> None:
    broken = client.ask("POST", "/v1/count", b"--edge\r\nnonsense", Content_Type="multipart/form-data")
    _problem(broken, 422, "invalid_request")
    missing = client.ask("GET", "/v1/nothing")
    assert (missing.status, missing.headers["content-type"]) == (404, "application/problem+json")
    assert client.ask("GET", "/v1/count").status == 405


@pytest.mark.ray
def test_a_body_without_a_length_is_cut_off_at_the_limit(client: Client) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=200)
    headers = {"Content-Type": "image/jpeg", "Authorization": f"Bearer {TOKEN}", "X-Request-ID": "endless"}
    try:
        connection.request("POST", "/v1/count", [b"x" * 10_000] * 400, headers, encode_chunked=True)
    except (BrokenPipeError, ConnectionResetError):
        pass  # it hung up on us: as good
    else:
        assert connection.getresponse().status == 413
    finally:
        connection.close()
    noted = _noted("endless")
    assert noted["status"] == 413
    assert MAX_BODY < noted["body_bytes"] < 10 * MAX_BODY  # of twenty times as much


@pytest.mark.ray
def test_a_bomb_of_pixels_is_rejected_from_its_header(client: Client) -> None:
    import struct
    import zlib

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    _problem(client.count(bomb), 422, "image_rejected")


@pytest.mark.ray
def test_the_token_opens_everything_but_health_and_pages(client: Client) -> None:
    for token in (None, "", TOKEN[:-1], TOKEN + "x", "ünïcödé".encode().decode("latin-1")):
        for path in ("/v1/bundle", "/metrics", "/v1/nothing"):
            reply = client.ask("GET", path, token=token)
            _problem(reply, 401, "unauthorized")
            assert reply.headers["www-authenticate"] == "Bearer"
    _problem(client.ask("POST", "/v1/count", photo(1, 1), token=None, Content_Type="image/jpeg"), 401, "unauthorized")
    for path in ("/healthz", "/readyz", "/", "/docs", "/openapi.json"):
        assert client.ask("GET", path, token=None).status == 200
    assert client.ask("GET", "/v1/bundle").json()["architecture"] == "resnet18"


@pytest.mark.ray
def test_a_batch_answers_each_photo_for_itself(client: Client, bundle: Path) -> None:
    good = [photo(number, number) for number in range(3)]
    body, kind = _form([("a.jpg", good[0]), ("b.jpg", b"no image"), ("<c>.jpg", good[2])], expected_qty=["0", "1", ""])
    reply = client.ask("POST", "/v1/count/batch", body, Content_Type=kind)
    assert reply.status == 200, reply.body
    items = reply.json()["items"]
    assert [item["file"] for item in items] == ["a.jpg", "b.jpg", "<c>.jpg"]
    np.testing.assert_allclose(items[0]["answer"]["probabilities"], _scores(bundle, good)[0], atol=1e-6)
    assert items[0]["answer"]["p_record_wrong"] is not None
    assert (items[1]["answer"], items[1]["problem"]["type"]) == (None, "urn:stock-audit:unreadable_image")
    assert items[2]["answer"]["p_record_wrong"] is None
    body, kind = _form([("a.jpg", good[0]), ("b.jpg", good[1])], expected_qty=["0"])
    _problem(client.ask("POST", "/v1/count/batch", body, Content_Type=kind), 422, "invalid_request")
    body, kind = _form([("a.jpg", b"x")] * (uploads.MAX_PHOTOS + 1))
    _problem(client.ask("POST", "/v1/count/batch", body, Content_Type=kind), 422, "invalid_request")


@pytest.mark.ray
def test_a_request_id_comes_back_once_and_stands_in_the_log_without_photo_or_token(client: Client) -> None:
    reply = client.count(photo(2, 2), X_Request_ID="my-own-id-1")
    assert reply.headers["x-request-id"] == "my-own-id-1"
    assert client.count(photo(2, 2)).headers["x-request-id"]
    noted = _noted("my-own-id-1")
    assert (noted["message"], noted["path"], noted["status"]) == ("request", "/v1/count", 200)
    assert noted["body_bytes"] == len(photo(2, 2))
    assert not [path for path in _logs().glob("*") if path.is_file() and TOKEN in path.read_text(errors="replace")]


@pytest.mark.ray
def test_more_than_can_wait_is_refused_at_once_and_the_rest_is_answered(client: Client) -> None:
    stop = threading.Event()
    replies: list[Reply] = []

    def insist(seed: int) -> None:
        for turn in range(6):
            if stop.is_set():
                return
            replies.append(client.count(photo(3, 100 * seed + turn)))

    with ThreadPoolExecutor(72) as pool:
        list(pool.map(insist, range(72)))
    assert {reply.status for reply in replies} == {200, 429}
    refused = next(reply for reply in replies if reply.status == 429)
    assert _problem(refused, 429, "overloaded")
    assert int(refused.headers["retry-after"]) >= 1
    assert client.count(photo(3, 3)).status == 200


@pytest.mark.ray
def test_metrics_are_those_of_ray_serve_and_ours(client: Client) -> None:
    client.count(photo(3, 3))
    deadline = time.monotonic() + 60
    wanted = ('outcome="counted"', "# TYPE ray_serve_num_http_requests")
    text = ""
    # each process reports every few seconds, and not all at the same time
    while not all(line in text for line in wanted) and time.monotonic() < deadline:
        reply = client.ask("GET", "/metrics")
        text = reply.body.decode() if reply.status == 200 else ""
        time.sleep(1)
    for line in wanted:
        assert line in text
    assert "\nray_node_" not in text


@pytest.mark.ray
def test_the_pages_load_nothing_from_elsewhere(client: Client) -> None:
    for path in ("/", "/docs"):
        reply = client.ask("GET", path, token=None)
        html, policy = reply.body.decode(), reply.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        assert "http" not in html.replace("http://www.w3.org/2000/svg", "").replace("http://127.0.0.1:8000/", "")
        assert "innerHTML" not in html
    description = client.ask("GET", "/openapi.json", token=None).json()
    assert set(description["paths"]) == {
        "/v1/count", "/v1/count/batch", "/v1/bundle", "/healthz", "/readyz", "/metrics",
    }  # fmt: skip


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_replica_costs_no_request(client: Client) -> None:
    import ray
    from ray.util import list_named_actors

    replies: list[Reply] = []

    def insist(seed: int) -> None:
        for turn in range(40):
            replies.append(client.count(photo(3, 100 * seed + turn)))

    threads = [threading.Thread(target=insist, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    names = [actor["name"] for actor in list_named_actors(all_namespaces=True)]
    ray.kill(ray.get_actor(next(name for name in names if "#Counter#" in name), namespace="serve"))
    for thread in threads:
        thread.join()
    assert [reply.status for reply in replies if reply.status != 200] == []


@pytest.mark.ray
def test_a_second_endpoint_on_the_cluster_is_told_how_to_end_the_first(client: Client, bundle: Path) -> None:
    with pytest.raises(InputError, match="serves already: `serve shutdown`"):
        serve_job.start_endpoint(ServeConfig(bundle_uri=str(bundle), port=client.port))
    assert client.ask("GET", "/readyz").status == 200


@pytest.mark.ray
def test_shutting_down_finishes_what_was_taken(client: Client) -> None:
    replies: list[Reply | Exception] = []
    started = threading.Event()

    def insist(seed: int) -> None:
        for turn in range(500):
            try:
                reply = client.count(photo(3, 100 * seed + turn))
            except ConnectionRefusedError:
                return  # nobody listens any more; a connection that breaks off instead is a lost request
            except (OSError, http.client.HTTPException) as error:
                replies.append(error)
                return
            replies.append(reply)
            if reply.status == 503:
                return  # as Retry-After asks; what comes when all is down may find a closing socket
            if turn == 2:
                started.set()

    threads = [threading.Thread(target=insist, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    started.wait(60)
    serve_job.stop_endpoint()
    for thread in threads:
        thread.join()
    answered = [reply for reply in replies if isinstance(reply, Reply)]
    assert [reply for reply in replies if not isinstance(reply, Reply)] == []
    assert {reply.status for reply in answered} <= {200, 503, 404}
    assert sum(reply.status == 200 for reply in answered) >= 3
    refused = next(reply for reply in answered if reply.status == 503)
    assert _problem(refused, 503, "shutting_down")


# --- without one -------------------------------------------------------------------------------------------------


def test_an_answer_that_is_no_number_is_not_taken_for_a_count(bundle: Path) -> None:
    counter = Counter(str(bundle), read_bundle_info(bundle).bundle_id, "cpu", "fp32", batch_size=1, threads=1)
    counter._scorer = SimpleNamespace(score=lambda pixels: np.full((len(pixels), 7), np.nan, np.float32))

    async def live() -> None:
        with pytest.raises(GateError, match="the network's answer is not a number in fp32; train the bundle again"):
            await counter.count(np.zeros((32, 32, 3), np.uint8))
        counter.check_health()  # another replica would say the same

    asyncio.run(live())


def test_an_endpoint_that_was_ended_from_elsewhere_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    status = SimpleNamespace(applications={APP_NAME: "RUNNING"})
    monkeypatch.setattr(serve_job.serve, "status", lambda: status)
    serve_job._check_running()
    status.applications = {}
    with pytest.raises(GateError, match="ended from elsewhere"):
        serve_job._check_running()


def test_a_drain_that_fails_still_ends_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = []

    def fail(name: str) -> None:
        raise RuntimeError(f"{name}: the controller died")

    monkeypatch.setattr(serve_job.serve, "get_app_handle", fail)
    monkeypatch.setattr(serve_job.serve, "shutdown", lambda: ended.append(True))
    with pytest.raises(RuntimeError, match="controller died"):
        serve_job.stop_endpoint()
    assert ended == [True]


def test_a_full_room_refuses_and_a_draining_one_waits() -> None:
    async def live() -> None:
        room = Room(limit=1)
        room.enter()
        with pytest.raises(Problem, match="1 photos are in flight"):
            room.enter()
        draining = asyncio.create_task(room.drain(10))
        await asyncio.sleep(0)
        with pytest.raises(Problem) as refused:
            room.enter()
        assert refused.value.cause == "shutting_down"
        room.leave(0.1)
        assert await draining == 0
        busy = Room(limit=1)
        busy.enter()
        assert await busy.drain(0.01) == 1

    asyncio.run(live())


def test_a_batch_holds_what_came_while_the_last_one_was_scored() -> None:
    sizes: list[int] = []

    def score(photos: np.ndarray) -> np.ndarray:
        sizes.append(len(photos))
        time.sleep(0.05)
        if (photos < 0).any():
            raise ValueError("negative")
        return photos * 2

    async def live() -> None:
        with ThreadPoolExecutor(1) as executor:
            batcher = Batcher(score, 8, executor)

            async def ask(number: int) -> None:
                for turn in range(6):
                    # one after the other, as answers and questions cross the network
                    await asyncio.sleep(0.002 * number)
                    answer = await batcher.submit(np.array([100 * turn + number]))
                    assert answer.tolist() == [2 * (100 * turn + number)]

            await asyncio.gather(*map(ask, range(8)))
            assert sizes[0] == 1
            assert sum(sizes) == 48 and len(sizes) <= 9
            company, waited = batcher._await_company, []

            async def watched(expected: int) -> None:
                waited.append(expected > len(batcher._queue))
                await company(expected)

            batcher._await_company = watched
            for number in range(5):
                await batcher.submit(np.array([number]))
            assert not any(waited[1:])  # nobody to wait for
            gone = asyncio.create_task(batcher.submit(np.array([1])))
            busy = asyncio.create_task(batcher.submit(np.array([-1])))
            await asyncio.sleep(0.001)
            gone.cancel()
            with pytest.raises(ValueError, match="negative"):
                await busy
            assert (await batcher.submit(np.array([4]))).tolist() == [8]
            assert not batcher.is_broken

    asyncio.run(live())


def test_a_network_that_failed_once_is_replaced(bundle: Path) -> None:
    info = read_bundle_info(bundle)
    counter = Counter(str(bundle), info.bundle_id, "cpu", "fp32", batch_size=1, threads=1)

    async def live() -> None:
        counter.check_health()
        with pytest.raises(ValueError, match="pixels: expected"):
            await counter.count(np.zeros((8, 8, 3), np.uint8))
        with pytest.raises(RuntimeError, match="the device may be lost"):
            counter.check_health()

    asyncio.run(live())


def test_metrics_of_several_nodes_are_one_page() -> None:
    head = "# HELP ray_serve_x_ms text\n# TYPE ray_serve_x_ms histogram\n"
    pages = [
        head + f'ray_serve_x_ms_bucket{{le="1",node="{node}"}} 1\nray_serve_x_ms_count{{node="{node}"}} 1\n'
        "# TYPE ray_node_cpu gauge\nray_node_cpu 3\n# TYPE ray_serve_free_count gauge\nray_serve_free_count 2\n"
        for node in "ab"
    ]
    assert merge_pages(pages).splitlines() == [
        "# TYPE ray_serve_free_count gauge",
        "ray_serve_free_count 2",
        "ray_serve_free_count 2",
        "# HELP ray_serve_x_ms text",
        "# TYPE ray_serve_x_ms histogram",
        'ray_serve_x_ms_bucket{le="1",node="a"} 1',
        'ray_serve_x_ms_count{node="a"} 1',
        'ray_serve_x_ms_bucket{le="1",node="b"} 1',
        'ray_serve_x_ms_count{node="b"} 1',
    ]


def test_serve_deploy_finds_the_builders_settings() -> None:
    import inspect

    # a string here would hand the builder a plain dict
    assert inspect.signature(build_app).parameters["settings"].annotation is EndpointSettings
    assert APP_NAME == "stock-audit"


def test_a_short_token_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from jobs.serving.access import is_authorized, read_token_digest

    monkeypatch.setenv("STOCK_AUDIT_TOKEN", "")
    with pytest.raises(InputError, match="at least 16 characters"):
        read_token_digest()
    monkeypatch.setenv("STOCK_AUDIT_TOKEN", TOKEN)
    digest = read_token_digest()
    assert digest is not None and TOKEN.encode() not in digest
    assert is_authorized(f"Bearer {TOKEN}".encode(), digest)
    assert not is_authorized(f"Basic {TOKEN}".encode(), digest)
    monkeypatch.setenv("STOCK_AUDIT_TOKEN", f"{TOKEN}\n")  # as `kubectl create secret --from-file` keeps it
    assert read_token_digest() == digest


def test_the_record_model_is_learned_from_the_audits_recounts(tmp_path: Path, bundle: Path, audits: Path) -> None:
    info = read_bundle_info(bundle)
    with pytest.raises(InputError, match="no committed night"):
        learn_current_belief(str(tmp_path / "nothing"), info)
    assert learn_current_belief(str(audits), info).state == "learned"
    assert learn_current_belief(None, info).state == "assumed"


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_bad_arguments_exit_2(tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for flags, message in (
            (["--bundle-uri", str(tmp_path / "none")], "none"),
            (["--bundle-uri", str(bundle), "--output-uri", str(tmp_path)], "no committed night"),
            (["--bundle-uri", str(bundle), "--port", "0"], "port"),
            (["--bundle-uri", str(bundle), "--host", "192.0.2.1"], "can't listen"),
            (["--bundle-uri", str(bundle), "--port", port], "in use"),
        ):
            assert serve_job.main(flags) == 2
            assert message in capsys.readouterr().err


def test_the_endpoint_is_for_this_machine_and_warns_where_anyone_may_ask(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert ServeConfig(bundle_uri="b").host == "127.0.0.1"
    monkeypatch.delenv("STOCK_AUDIT_TOKEN", raising=False)
    hosts = {"127.0.0.1": False, "::1": False, "localhost": False, "0.0.0.0": True, "10.0.0.7": True}
    for host, is_open in hosts.items():
        caplog.clear()
        serve_job._warn_if_open(host)
        assert ("anyone may ask" in caplog.text) == is_open, host
    monkeypatch.setenv("STOCK_AUDIT_TOKEN", TOKEN)
    caplog.clear()
    serve_job._warn_if_open("0.0.0.0")
    assert not caplog.text


def test_a_front_answers_in_time_and_judges_by_no_other_bundle(bundle: Path) -> None:
    belief = learn_current_belief(None, read_bundle_info(bundle)).to_dict()
    never = SimpleNamespace(count=SimpleNamespace(remote=lambda pixels: asyncio.sleep(3600)))

    async def live() -> None:
        front = Front(never, FrontSettings(str(bundle), belief, None, 1, 1, 0.5))  # type: ignore[arg-type]
        async with asyncio.timeout(30):
            with pytest.raises(Problem) as late:
                await front.count(uploads.Upload(photo(3, 3), None, 3))
        assert late.value.cause == "timed_out"

    asyncio.run(live())
    with pytest.raises(InputError, match="deployed with bundle another"):
        Front(never, FrontSettings(str(bundle), belief | {"bundle_id": "another"}, None, 1, 1, 1.0))  # type: ignore[arg-type]
