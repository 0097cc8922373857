"""The endpoint's gate and routes without Ray: memory and places are bounded, whatever a caller sends."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import pytest
from fastapi import FastAPI

from jobs.config.train import TrainConfig
from jobs.serving.access import read_token_digest
from jobs.serving.answers import EXAMPLE, Answer, BatchAnswer
from jobs.serving.description import without_places
from jobs.serving.gate import Gate, Room
from jobs.serving.problems import CAUSES, HUNG_UP, Problem
from jobs.serving.routes import build_api
from jobs.serving.uploads import MAX_PHOTOS, Upload
from schemas.bundle import BundleInfo
from tests.planned_night import bundle_info

JPEG = {"content-type": "image/jpeg"}


@dataclass
class Reply:
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    unread: int = 0
    """Chunks of the request that were not asked for."""

    def json(self) -> dict[str, Any]:
        return json.loads(self.body)


class Photos:
    """In place of Ray's counter."""

    def __init__(self) -> None:
        self.found: Counter[str] = Counter()

    def inc(self, value: float = 1.0, tags: dict[str, str] | None = None) -> None:
        assert tags is not None
        self.found[tags["outcome"]] += int(value)


async def ask(
    app: FastAPI,
    path: str,
    *chunks: bytes,
    headers: dict[str, str],
    method: str = "POST",
    prefix: str = "",
    hangs_up: bool = False,
    stalls: bool = False,
) -> Reply:
    """One request; the body comes in these chunks, without a length unless `headers` give one, and the caller `hangs_up`
    after them, `stalls` with more to come, or waits for the answer."""
    reply, waiting = Reply(), list(chunks) or [b""]
    path, _, query = path.partition("?")
    scope = {
        "type": "http", "http_version": "1.1", "method": method, "path": prefix + path, "raw_path": (prefix + path).encode(),
        "query_string": query.encode(), "root_path": prefix, "scheme": "http", "server": ("127.0.0.1", 8000),
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers.items()],
    }  # fmt: skip

    async def receive() -> dict[str, Any]:
        if not waiting:
            await asyncio.sleep(3600 if stalls else 0)
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": waiting.pop(0), "more_body": bool(waiting) or hangs_up or stalls}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            reply.status = message["status"]
            reply.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            reply.body += message.get("body", b"")

    await app(scope, receive, send)
    reply.unread = len(waiting)
    return reply


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.001)


def build(
    room: Room, count: Callable[[Upload], Awaitable[Answer]] | None = None, *, timeout_s: float = 5, **gate: Any
) -> FastAPI:
    async def at_once(upload: Upload) -> Answer:
        return Answer.model_validate(EXAMPLE)

    photos = Photos()
    settings = SimpleNamespace(request_timeout_s=timeout_s, token_digest=gate.get("token_digest"))
    front = SimpleNamespace(settings=settings, count=count or at_once, room=room, photos=photos)
    app = build_api(front)  # type: ignore[arg-type]
    app.add_middleware(Gate, room=room, photos=photos, **{"token_digest": None, "max_body_bytes": 1000, **gate})
    app.state.photos = photos.found
    return app


def problem(reply: Reply, status: int, cause: str) -> Reply:
    assert (reply.status, reply.json()["type"]) == (status, f"urn:stock-audit:{cause}"), reply.body
    return reply


@pytest.mark.parametrize("announced", [True, False])
def test_bodies_hold_bytes_until_they_are_answered(announced: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.serving.gate.MAX_HELD_BYTES", 1000)
    headers = JPEG | ({"content-length": "600"} if announced else {})

    async def live() -> None:
        room, may_go = Room(limit=10), asyncio.Event()

        async def count(upload: Upload) -> Answer:
            await may_go.wait()
            return Answer.model_validate(EXAMPLE)

        app = build(room, count)
        first = asyncio.create_task(ask(app, "/v1/count", b"x" * 300, b"x" * 300, headers=headers))
        await until(lambda: (room.in_flight, room.held_bytes) == (1, 600))
        refused = await ask(app, "/v1/count", b"x" * 300, b"x" * 300, headers=headers)
        assert int(problem(refused, 429, "overloaded").headers["retry-after"]) >= 1
        assert (room.in_flight, room.held_bytes) == (1, 600)
        may_go.set()
        assert (await first).status == 200
        assert (room.in_flight, room.held_bytes) == (0, 0)
        assert (await ask(app, "/v1/count", b"x" * 300, b"x" * 300, headers=headers)).status == 200
        endless = await ask(app, "/v1/count", *[b"x" * 600] * 9, headers=JPEG)
        assert problem(endless, 413, "body_too_large").unread == 7
        assert (room.in_flight, room.held_bytes) == (0, 0)

    asyncio.run(live())


def test_a_photo_that_was_taken_is_not_kept() -> None:
    upload = Upload(b"photo", None, 3)
    assert upload.take() == b"photo"
    assert upload.data == b""


def form(*names: bytes, charset: str = "", field: bytes = b"file") -> tuple[bytes, dict[str, str]]:
    """One file of each name, the last one in the field `field`."""
    fields = [b"file"] * (len(names) - 1) + [field]
    parts = [
        b'--edge\r\nContent-Disposition: form-data; name="' + field + b'"; filename="' + name + b'"\r\n\r\nx\r\n'
        for field, name in zip(fields, names, strict=False)
    ]
    return b"".join(parts) + b"--edge--\r\n", {"content-type": f"multipart/form-data; boundary=edge{charset}"}


FORM = form()[1]


@pytest.mark.parametrize(("path", "headers"), [("/v1/count", JPEG), ("/v1/count", FORM), ("/v1/count/batch", FORM)])
def test_a_body_that_does_not_come_gives_its_place_back(path: str, headers: dict[str, str]) -> None:
    async def live() -> None:
        room = Room(10)
        async with asyncio.timeout(10):
            app = build(room, timeout_s=0.05)
            reply = await ask(app, path, form(b"a.jpg")[0][:80], headers=headers, stalls=True)
        problem(reply, 408, "body_timed_out")
        assert (room.in_flight, room.held_bytes) == (0, 0)

    asyncio.run(live())


@pytest.mark.parametrize(("path", "headers"), [("/v1/count", JPEG), ("/v1/count", FORM), ("/v1/count/batch", FORM)])
def test_a_caller_who_hangs_up_in_mid_upload_is_no_defect(path: str, headers: dict[str, str]) -> None:
    room = Room(10)
    reply = asyncio.run(ask(build(room), path, form(b"a.jpg")[0][:80], headers=headers, hangs_up=True))
    assert (reply.status, reply.body) == (HUNG_UP, b"")
    assert (room.in_flight, room.held_bytes) == (0, 0)


@pytest.mark.parametrize(
    ("path", "detail"),
    [
        ("/v1/count?expected=3", "query: expected at most one expected_qty, found expected"),
        (
            "/v1/count?expected_qty=1&expected_qty=2",
            "query: expected at most one expected_qty, found expected_qty, expected_qty",
        ),
        ("/v1/count?expected_qty=1&x", "query: expected at most one expected_qty, found expected_qty, x"),
        ("/v1/count/batch?expected_qty=3", "query: expected nothing, and quantities in the form, found expected_qty"),
    ],
)
def test_a_query_that_would_be_passed_over_is_refused(path: str, detail: str) -> None:
    reply = problem(asyncio.run(ask(build(Room(10)), path, form(b"a")[0], headers=FORM)), 422, "invalid_request")
    assert reply.json()["detail"] == detail
    assert reply.unread == 1


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/count", form(b"a", b"b")[0]),
        ("/v1/count/batch", form(*[b"a"] * (MAX_PHOTOS + 1))[0]),
        ("/v1/count", b"--edge\r\nnonsense"),
    ],
    ids=["two files", "too many photos", "broken"],
)
def test_a_form_that_is_broken_or_holds_too_much_is_an_invalid_request(path: str, body: bytes) -> None:
    app = build(Room(10), max_body_bytes=100_000)
    assert problem(asyncio.run(ask(app, path, body, headers=FORM)), 422, "invalid_request").json()["detail"]


def test_uploads_that_are_refused_while_they_are_read_are_counted() -> None:
    app = build(Room(10))

    async def live() -> None:
        assert (await ask(app, "/v1/count", b"x", headers={"content-type": "text/plain"})).status == 415
        assert (await ask(app, "/v1/count/batch", b"x", headers=JPEG)).status == 415
        assert (await ask(app, "/v1/count?expected_qty=many", b"x", headers=JPEG)).status == 422

    asyncio.run(live())
    assert app.state.photos == {"unsupported_media_type": 2, "invalid_request": 1}


@pytest.mark.parametrize(
    ("charset", "name"),
    [
        ("utf-7", b"+2AA-"), ("unicode_escape", b"\\ud800"), ("raw_unicode_escape", b"\\ud800"),
        ("undefined", b"a.jpg"), ("hex", b"a.jpg"), ("\xff", b"a.jpg"), ('""', b"a.jpg"),
    ],
)  # fmt: skip
def test_a_charset_other_than_utf8_is_refused(charset: str, name: bytes) -> None:
    body, headers = form(name, charset=f"; charset={charset}")
    for path in ("/v1/count", "/v1/count/batch"):
        problem(asyncio.run(ask(build(Room(10)), path, body, headers=headers)), 415, "unsupported_media_type")


@pytest.mark.parametrize("charset", ["", "; charset=utf-8", '; charset="UTF-8"'])
@pytest.mark.parametrize("name", ["Regal 4 – Fach ü.jpg".encode(), b"\xed\xa0\x80.jpg", b"\xff\xfe", b"a\\ud800"])
def test_any_file_name_can_be_answered(charset: str, name: bytes) -> None:
    body, headers = form(name, charset=charset)
    reply = asyncio.run(ask(build(Room(10)), "/v1/count/batch", body, headers=headers))
    assert reply.status == 200
    assert reply.json()["items"][0]["file"]


@pytest.mark.parametrize(("path", "names"), [("/v1/count", [b"a.jpg"]), ("/v1/count/batch", [b"a.jpg", b"b.jpg"])])
def test_a_form_field_of_another_name_is_not_passed_over(path: str, names: list[bytes]) -> None:
    body, headers = form(*names, field=b"file2")
    refused = problem(asyncio.run(ask(build(Room(10)), path, body, headers=headers)), 422, "invalid_request")
    assert "expected the fields file and expected_qty, found file2" in refused.json()["detail"]


def test_a_batch_takes_a_place_for_each_of_its_photos() -> None:
    async def live() -> None:
        room, may_go = Room(limit=4), asyncio.Event()

        async def count(upload: Upload) -> Answer:
            await may_go.wait()
            return Answer.model_validate(EXAMPLE)

        app = build(room, count)
        body, headers = form(b"a", b"b", b"c")
        first = asyncio.create_task(ask(app, "/v1/count/batch", body, headers=headers))
        await until(lambda: room.in_flight == 3)
        refused = problem(await ask(app, "/v1/count/batch", body, headers=headers), 429, "overloaded")
        assert int(refused.headers["retry-after"]) >= 1
        assert room.in_flight == 3
        single = asyncio.create_task(ask(app, "/v1/count", b"x", headers=JPEG))
        await until(lambda: room.in_flight == 4)
        may_go.set()
        assert [(await reply).status for reply in (first, single)] == [200, 200]
        assert room.in_flight == 0
        assert (await ask(app, "/v1/count/batch", form(*[b"a"] * 6)[0], headers=headers)).status == 200
        assert room.in_flight == 0
        assert app.state.photos == {"overloaded": 3}

    asyncio.run(live())


def test_a_batch_that_nothing_of_was_counted_says_when_to_come_again() -> None:
    async def count(upload: Upload) -> Answer:
        if upload.name == "good":
            return Answer.model_validate(EXAMPLE)
        if upload.name == "bad":
            raise Problem("unreadable_image", "empty file")
        raise Problem("overloaded", "64 photos are waiting", retry_after_s=7)

    async def live() -> None:
        app = build(Room(10), count)
        body, headers = form(b"bad", b"waits", b"waits")
        refused = problem(await ask(app, "/v1/count/batch", body, headers=headers), 429, "overloaded")
        assert refused.headers["retry-after"] == "7"
        body, headers = form(b"good", b"waits", b"bad")
        reply = await ask(app, "/v1/count/batch", body, headers=headers)
        assert reply.status == 200
        causes = [item["problem"] and item["problem"]["type"].rsplit(":", 1)[1] for item in reply.json()["items"]]
        assert causes == [None, "overloaded", "unreadable_image"]
        body, headers = form(b"bad", b"bad")
        assert (await ask(app, "/v1/count/batch", body, headers=headers)).status == 200

    asyncio.run(live())


def test_what_the_gate_refuses_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOCK_AUDIT_TOKEN", "a token that is long enough")
    token = {"authorization": "Bearer a token that is long enough"}

    async def live() -> None:
        room = Room(limit=1)
        app = build(room, token_digest=read_token_digest())
        problem(await ask(app, "/v1/count", b"x", headers=JPEG), 401, "unauthorized")
        problem(await ask(app, "/v1/bundle", headers={}, method="GET"), 401, "unauthorized")  # no photo
        long = JPEG | token | {"content-length": "1001"}
        problem(await ask(app, "/v1/count", b"x" * 1001, headers=long), 413, "body_too_large")
        problem(await ask(app, "/v1/count", b"x" * 1001, headers=JPEG | token), 413, "body_too_large")
        room.enter()
        problem(await ask(app, "/v1/count", b"x", headers=JPEG | token), 429, "overloaded")
        assert app.state.photos == {"unauthorized": 1, "body_too_large": 2, "overloaded": 1}

    asyncio.run(live())


def test_a_deployment_under_a_route_prefix_is_gated_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOCK_AUDIT_TOKEN", "a token that is long enough")
    token = {"authorization": "Bearer a token that is long enough"}

    async def live() -> None:
        room = Room(limit=1)
        app = build(room, token_digest=read_token_digest())
        assert (await ask(app, "/healthz", headers={}, method="GET", prefix="/counter")).status == 200
        assert (await ask(app, "/v1/count", b"x", headers=JPEG | token, prefix="/counter")).status == 200
        room.enter()
        refused = await ask(app, "/v1/count", b"x", headers=JPEG | token, prefix="/counter")
        problem(refused, 429, "overloaded")

    asyncio.run(live())


def test_every_body_and_every_answer_has_an_example() -> None:
    operations = [
        (f"{method} {path}", operation)
        for path, methods in build(Room(1)).openapi()["paths"].items()
        for method, operation in methods.items()
    ]
    examples = {}
    for name, operation in operations:
        for kind, content in operation["responses"]["200"]["content"].items():
            examples[name, kind] = content["example"]
        for content in operation.get("requestBody", {}).get("content", {}).values():
            assert content["example"]
    assert len(examples) == 6
    BatchAnswer.model_validate(examples["post /v1/count/batch", "application/json"])
    BundleInfo.model_validate(examples["get /v1/bundle", "application/json"])


def test_the_description_names_every_cause_and_the_token() -> None:
    description = build(Room(1), token_digest=b"digest").openapi()
    count = description["paths"]["/v1/count"]["post"]
    causes = {
        cause
        for response in count["responses"].values()
        for content in response["content"].values()
        for cause in content.get("examples", {})
    }
    assert causes == set(CAUSES)
    assert "unreadable_image: " in count["responses"]["422"]["description"]
    (scheme,) = description["components"]["securitySchemes"].values()
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    secured = {
        path for path, methods in description["paths"].items() for each in methods.values() if "security" in each
    }
    assert secured == {"/v1/count", "/v1/count/batch", "/v1/bundle", "/metrics"}
    assert "securitySchemes" not in build(Room(1)).openapi()["components"]


def record(quantity: str) -> bytes:
    """One more field for a `form`, to stand before it."""
    return f'--edge\r\nContent-Disposition: form-data; name="expected_qty"\r\n\r\n{quantity}\r\n'.encode()


@pytest.mark.parametrize(
    ("text", "quantity"),
    [
        *(("12", 12), ("0", 0), ("2147483647", 2147483647), ("", None)),
        *((text, "refused") for text in ("1.000", "1_000", "+3", "-1", "2147483648", "9" * 5000, "٣")),
    ],
)
def test_a_quantity_in_the_query_is_read_as_one_in_a_form_is(text: str, quantity: int | str | None) -> None:
    recorded: list[int | None] = []

    async def count(upload: Upload) -> Answer:
        recorded.append(upload.expected_qty)
        return Answer.model_validate(EXAMPLE)

    async def live() -> None:
        app, body = build(Room(1), count, max_body_bytes=10_000), record(text) + form(b"a.jpg")[0]
        replies = [
            await ask(app, "/v1/count", body, headers=FORM),
            await ask(app, "/v1/count/batch", body, headers=FORM),
        ]
        if text:  # without a record a caller leaves the query's away
            replies.append(await ask(app, f"/v1/count?expected_qty={quote(text)}", b"x", headers=JPEG))
        for reply in replies:
            assert reply.status == (422 if quantity == "refused" else 200), reply.body
        assert recorded == ([] if quantity == "refused" else [quantity] * len(replies))

    asyncio.run(live())


def test_a_refused_setting_is_told_of_by_its_place_and_without_its_value() -> None:
    reply = asyncio.run(ask(build(Room(1)), "/v1/count?expected_qty=many", b"x", headers=JPEG))
    assert reply.json()["errors"] == [
        {"place": "query.expected_qty", "message": "Value error, expected a whole number"}
    ]


def test_a_quantity_stands_in_the_query_or_in_the_form() -> None:
    body = record("3") + form(b"a.jpg")[0]
    for query in ("3", "0"):
        reply = asyncio.run(ask(build(Room(1)), f"/v1/count?expected_qty={query}", body, headers=FORM))
        assert "in the query or in the form, found in both" in problem(reply, 422, "invalid_request").json()["detail"]


def test_who_is_to_come_again_is_told_of_about_as_long_as_photos_take() -> None:
    room = Room(limit=1)
    for seconds in [9.0] * 50 + [2.9] * 100:
        room.enter()
        room.leave(seconds)
    assert room.overloaded("full").headers["Retry-After"] == "3"


def test_the_bundle_is_shown_without_the_places_that_its_training_read() -> None:
    config = TrainConfig(
        manifest_uri="/srv/m", bundle_uri="s3://secret/b", weights="/home/me/w.pth", allowed_root=("/srv",)
    )
    info = bundle_info().model_copy(update={"training": config.model_dump(mode="json")})
    shown = without_places(info).model_dump_json()
    assert "max_epochs" in shown
    assert not [place for place in ("/srv", "secret", "/home") if place in shown]


def test_the_route_shows_the_bundle_without_places() -> None:
    training = {"manifest_uri": "s3://secret/m", "allowed_root": ["/srv"], "max_epochs": 30}
    info, settings = (
        bundle_info().model_copy(update={"training": training}),
        SimpleNamespace(request_timeout_s=5, token_digest=None),
    )
    front = SimpleNamespace(settings=settings, bundle=info, room=Room(1), photos=Photos())
    reply = asyncio.run(ask(build_api(front), "/v1/bundle", headers={}, method="GET"))  # type: ignore[arg-type]
    assert (reply.status, reply.json()["training"]) == (200, {"max_epochs": 30})


@pytest.mark.parametrize("num_records", [1, 3])
def test_a_batch_has_a_record_for_each_photo_or_none(num_records: int) -> None:
    body, headers = form(b"a.jpg", b"b.jpg")
    reply = asyncio.run(ask(build(Room(10)), "/v1/count/batch", record("3") * num_records + body, headers=headers))
    assert (
        f"one per file (2; empty where there is no record), found {num_records}"
        in problem(reply, 422, "invalid_request").json()["detail"]
    )
