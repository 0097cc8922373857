"""The endpoint over real HTTP on a real Ray Serve: answers, errors, limits, token, metrics, its page in a real browser,
shutting down."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from ray import serve

from jobs import serve as serve_job
from jobs.config.serve import ServeConfig
from jobs.serving import uploads
from jobs.serving.app import learn_current_belief
from jobs.stages.resources import CPU_BATCH, resolve_precision
from model.bundle import load_bundle
from model.bundle_files import TRAINING_IMAGES_SCHEMA, read_bundle_info
from model.images import decode_image
from model.posterior import build_assessor, camera_columns
from model.processor import read_processor
from model.scoring import Scorer
from schemas.errors import InputError
from tests.browser import CHROMIUM, Tab, in_browser
from tests.conftest import free_port
from tests.dump import photo, write_bundle
from tests.model.hostile_photos import encode, png
from tests.night import write_nights

pytestmark = pytest.mark.ray
in_chromium = pytest.mark.skipif(not CHROMIUM, reason="no Chromium here (Debian: apt-get install chromium)")

TOKEN = "a token that is long enough"
MAX_BODY = 200_000
DROP = """
(() => {
  const bytes = Uint8Array.from(atob("%s"), (letter) => letter.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], "<b>bin</b>.jpg", { type: "image/jpeg" }));
  document.getElementById("drop").dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
})()
"""
ENTER_TOKEN = f"document.getElementById('token').value = '{TOKEN}'"
ANSWERED = "new Promise((done) => { const look = () => document.getElementById('%s').hidden ? setTimeout(look, 50) : done(true); look(); })"


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
    """It has learned from one photo and tested itself on another."""
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
    """One endpoint for all tests, since it takes long to start; the last one shuts it down."""
    port = free_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STOCK_AUDIT_TOKEN", TOKEN)
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


@pytest.fixture
def endpoint(client: Client) -> str:
    return f"http://127.0.0.1:{client.port}/"


def _scores(bundle: Path, photos: list[bytes]) -> np.ndarray:
    loaded = load_bundle(bundle)
    scorer = Scorer(
        loaded, device="cpu", precision=resolve_precision("auto", "cpu", [], [read_processor()]), batch_size=CPU_BATCH
    )
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


def test_answers_are_those_of_the_audit_alone_and_in_company(client: Client, bundle: Path) -> None:
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


def test_a_recorded_quantity_gives_the_audits_doubt(client: Client, bundle: Path, audits: Path) -> None:
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


def test_nothing_is_said_about_the_record_by_a_blank_photo_or_one_learned_from(client: Client) -> None:
    blank = client.count(encode(Image.new("RGB", (64, 64), (90, 90, 90)), "PNG"), "?expected_qty=3").json()
    assert (blank["p_record_wrong"], blank["reason"]) == (None, "poor_photo")
    learned = client.count(photo(5, 500), "?expected_qty=3").json()
    assert (learned["p_record_wrong"], learned["reason"]) == (None, "training_photo")
    tested = client.count(photo(5, 501), "?expected_qty=3").json()
    assert tested["reason"] is None and tested["p_record_wrong"] is not None


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
        (photo(3, 3), "?expected_qty=1.000", "image/jpeg", 422, "invalid_request"),
        (photo(3, 3), "?expected_qty=99999999999999999999", "image/jpeg", 422, "invalid_request"),
        (_form([("a.jpg", b"")], expected_qty=["-1"])[0], "", "multipart/form-data; boundary=edge", 422, "invalid_request"),
        (_form([])[0], "", "multipart/form-data; boundary=edge", 422, "invalid_request"),
        (_form([("a.jpg", photo(3, 3))], file=["text"])[0], "", "multipart/form-data; boundary=edge", 422, "invalid_request"),
    ],
    ids=[
        "empty", "text", "truncated", "too-large", "type", "curl-default", "negative", "nan", "fraction", "thousand", "huge",
        "negative-in-form", "no-file", "text-for-a-file",
    ],
)  # fmt: skip
def test_errors_are_typed(client: Client, body: bytes, query: str, kind: str, status: int, cause: str) -> None:
    _problem(client.ask("POST", f"/v1/count{query}", body, Content_Type=kind), status, cause)


def test_a_broken_form_and_an_unknown_path_are_problems_too(client: Client) -> None:
    broken = client.ask("POST", "/v1/count", b"--edge\r\nnonsense", Content_Type="multipart/form-data")
    _problem(broken, 422, "invalid_request")
    missing = client.ask("GET", "/v1/nothing")
    assert (missing.status, missing.headers["content-type"]) == (404, "application/problem+json")
    assert client.ask("GET", "/v1/count").status == 405


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


def test_a_bomb_of_pixels_is_rejected_from_its_header(client: Client) -> None:
    _problem(client.count(png(60_000, 60_000, rows=bytes(100))), 422, "image_rejected")


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


def test_a_request_id_comes_back_once_and_stands_in_the_log_without_photo_or_token(client: Client) -> None:
    reply = client.count(photo(2, 2), X_Request_ID="my-own-id-1")
    assert reply.headers["x-request-id"] == "my-own-id-1"
    assert client.count(photo(2, 2)).headers["x-request-id"]
    noted = _noted("my-own-id-1")
    assert (noted["message"], noted["path"], noted["status"]) == ("request", "/v1/count", 200)
    assert noted["body_bytes"] == len(photo(2, 2))
    assert not [path for path in _logs().glob("*") if path.is_file() and TOKEN in path.read_text(errors="replace")]


def test_more_than_can_wait_is_refused_at_once_and_the_rest_is_answered(client: Client) -> None:
    replies: list[Reply] = []

    def insist(seed: int) -> None:
        for turn in range(6):
            replies.append(client.count(photo(3, 100 * seed + turn)))

    with ThreadPoolExecutor(72) as pool:
        list(pool.map(insist, range(72)))
    assert {reply.status for reply in replies} == {200, 429}
    refused = next(reply for reply in replies if reply.status == 429)
    assert _problem(refused, 429, "overloaded")
    assert int(refused.headers["retry-after"]) >= 1
    assert client.count(photo(3, 3)).status == 200


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


def drop(data: bytes) -> str:
    return DROP % base64.b64encode(data).decode()


def text(name: str) -> str:
    return f"document.getElementById('{name}').textContent"


@in_chromium
def test_a_dropped_photo_is_counted_and_held_against_the_record(endpoint: str, browser: int) -> None:
    async def steps(tab: Tab) -> None:
        await tab.evaluate(ENTER_TOKEN)
        await tab.evaluate("document.getElementById('expected').value = '2'")
        await tab.evaluate(drop(photo(3, 7)))
        assert await tab.evaluate(ANSWERED % "answer")
        count = (await tab.evaluate(text("count"))).split()[0]
        assert await tab.evaluate(text("status")) == f"Counted: {await tab.evaluate(text('count'))}"
        assert int(count) in range(7)
        assert "Record 2: wrong with probability" in await tab.evaluate(text("record"))
        shares = await tab.evaluate("[...document.querySelectorAll('#bars .share')].map((bar) => bar.textContent)")
        assert len(shares) == 7
        assert await tab.evaluate("document.getElementById('picture').naturalWidth") > 0

    assert {
        asked.removeprefix(endpoint)
        for asked in in_browser(browser, endpoint, "!!document.getElementById('send')", steps)
    } == {
        "",
        "v1/count?expected_qty=2",
    }


@in_chromium
def test_what_is_no_photo_is_answered_with_the_reason(endpoint: str, browser: int) -> None:
    async def steps(tab: Tab) -> None:
        await tab.evaluate(ENTER_TOKEN)
        await tab.evaluate(drop(b"<script>alert(1)</script>"))
        assert await tab.evaluate(ANSWERED % "problem")
        assert "image" in (await tab.evaluate(text("problem"))).lower()
        assert await tab.evaluate("document.getElementById('answer').hidden")
        # the browser itself reports every answer above 399 to the console
        tab.complaints = [line for line in tab.complaints if "Failed to load resource" not in line]

    in_browser(browser, endpoint, "!!document.getElementById('send')", steps)


@in_chromium
def test_a_page_that_has_no_field_for_a_token_asks_without_one(endpoint: str, browser: int) -> None:
    """As where none is needed; this endpoint then says that it needs one."""

    async def steps(tab: Tab) -> None:
        await tab.evaluate("document.getElementById('token').remove()")
        await tab.evaluate(drop(photo(3, 7)))
        assert await tab.evaluate(ANSWERED % "problem")
        assert "token" in (await tab.evaluate(text("problem"))).lower()
        tab.complaints = [line for line in tab.complaints if "Failed to load resource" not in line]

    in_browser(browser, endpoint, "!!document.getElementById('send')", steps)


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


def test_a_second_endpoint_on_the_cluster_is_told_how_to_end_the_first(client: Client, bundle: Path) -> None:
    with pytest.raises(InputError, match="serves already: `serve shutdown`"):
        serve_job.start_endpoint(ServeConfig(bundle_uri=str(bundle), port=client.port))
    assert client.ask("GET", "/readyz").status == 200


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
