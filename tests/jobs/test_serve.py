"""The endpoint's parts and its command, without a running one."""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError

from jobs import serve as serve_job
from jobs.config.serve import EndpointSettings, ServeConfig
from jobs.counting.belief import true_shares
from jobs.platform.bundles import ScorerPlan
from jobs.serving import app, uploads
from jobs.serving.access import is_authorized, read_token_digest
from jobs.serving.app import APP_NAME, build_app, learn_current_belief
from jobs.serving.batching import Batcher
from jobs.serving.counter import Counter
from jobs.serving.front import TRIES, Front, FrontSettings
from jobs.serving.gate import Room
from jobs.serving.metrics import merge_pages
from jobs.serving.pages import render_drop_page
from jobs.serving.problems import Problem
from jobs.stages.resources import Resources
from model.bundle_files import read_bundle_info
from schemas.errors import GateError, InputError
from tests.conftest import free_port
from tests.dump import photo, write_bundle
from tests.night import write_nights

TOKEN = "a token that is long enough"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle"))


def plan_of(bundle: Path) -> ScorerPlan:
    return ScorerPlan(str(bundle), read_bundle_info(bundle).bundle_id, "cpu", "fp32", batch_size=1, threads=1)


def test_an_answer_that_is_no_number_is_not_taken_for_a_count(bundle: Path) -> None:
    counter = Counter(plan_of(bundle))
    counter._scorer = SimpleNamespace(score=lambda pixels: np.full((len(pixels), 7), np.nan, np.float32))

    async def live() -> None:
        with pytest.raises(GateError, match="the network's answer is not a number in fp32; train the bundle again"):
            await counter.count(np.zeros((32, 32, 3), np.uint8))
        counter.check_health()  # another replica would say the same

    asyncio.run(live())


def test_an_endpoint_that_was_ended_from_elsewhere_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    running = SimpleNamespace(deployments={"Front": SimpleNamespace(replica_states={"RUNNING": 1})})
    status, ended = SimpleNamespace(applications={APP_NAME: running}), []
    monkeypatch.setattr(serve_job.serve, "status", lambda: status)
    monkeypatch.setattr(serve_job.serve, "shutdown", lambda: ended.append(True))
    serve_job._check_running()
    status.applications = {"another": running}
    with pytest.raises(GateError, match="ended from elsewhere"):
        serve_job._check_running()
    assert ended == []  # it is the other one's
    status.applications = {}
    with pytest.raises(GateError, match="ended from elsewhere"):
        serve_job._check_running()
    assert ended == [True]


def test_an_endpoint_that_stays_unhealthy_is_ended_with_serve_s_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    front = SimpleNamespace(message="deployed with bundle a, found b", replica_states={"STARTING": 1})
    counter = SimpleNamespace(message="", replica_states={"RUNNING": 1, "STARTING": 1})
    application = SimpleNamespace(message="", deployments={"Front": front, "Counter": counter})
    stopped: list[bool] = []

    def stop() -> None:
        stopped.append(True)
        raise GateError("the photos that were taken could not be finished")

    monkeypatch.setattr(serve_job.serve, "status", lambda: SimpleNamespace(applications={APP_NAME: application}))
    monkeypatch.setattr(serve_job, "stop_endpoint", stop)
    began = serve_job._check_running()
    assert began is not None and serve_job._check_running(began) == began
    front.replica_states = {"RUNNING": 1}
    assert serve_job._check_running(began) is None  # one of the counters is being replaced, and another counts
    front.replica_states = {"STARTING": 1, "RUNNING": 0}
    with pytest.raises(GateError, match="can't be kept up: deployed with bundle a, found b"):
        serve_job._check_running(began - serve_job.UNHEALTHY_SECONDS - 1)
    assert stopped == [True]


@pytest.mark.parametrize("error", [TimeoutError("60s"), RayActorError()], ids=["late", "dead"])
def test_a_proxy_that_does_not_come_up_is_said_and_ended(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    ended = []

    def fail(**options: object) -> None:
        raise error

    monkeypatch.setattr(serve_job, "build_app", lambda config: None)
    monkeypatch.setattr(serve_job, "await_replicas", lambda: None)
    monkeypatch.setattr(serve_job.serve, "status", lambda: SimpleNamespace(proxies={}))
    monkeypatch.setattr(serve_job.serve, "start", fail)
    monkeypatch.setattr(serve_job.serve, "shutdown", lambda: ended.append(True))
    with pytest.raises(GateError, match="the endpoint did not start"):
        serve_job.start_endpoint(ServeConfig(bundle_uri="b", port=free_port()))
    assert ended == [True]


@pytest.mark.parametrize(
    "error",
    [DeploymentUnavailableError("Front"), RayActorError(), TimeoutError("70 s")],  # type: ignore[arg-type]
    ids=["none", "dead", "late"],
)
def test_a_drain_that_fails_is_told_of_and_still_ends_serve(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    ended = []

    def fail(name: str) -> None:
        raise error

    monkeypatch.setattr(serve_job.serve, "get_app_handle", fail)
    monkeypatch.setattr(serve_job.serve, "shutdown", lambda: ended.append(True))
    with pytest.raises(GateError, match="could not be finished"):
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


def test_more_photos_than_a_batch_holds_are_all_counted() -> None:
    sizes: list[int] = []

    def score(photos: np.ndarray) -> np.ndarray:
        sizes.append(len(photos))
        return photos * 2

    async def live() -> None:
        with ThreadPoolExecutor(1) as executor:
            batcher = Batcher(score, 2, executor)
            async with asyncio.timeout(10):
                answers = await asyncio.gather(*(batcher.submit(np.array([number])) for number in range(7)))
        assert [answer.tolist() for answer in answers] == [[2 * number] for number in range(7)]

    asyncio.run(live())
    assert sum(sizes) == 7 and max(sizes) == 2


def test_a_network_that_failed_once_is_replaced(bundle: Path) -> None:
    counter = Counter(plan_of(bundle))

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
    # a string here would hand the builder a plain dict
    assert inspect.signature(build_app).parameters["settings"].annotation is EndpointSettings
    assert APP_NAME == "stock-audit"


def test_a_short_token_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOCK_AUDIT_TOKEN", "")
    with pytest.raises(InputError, match="at least 16 characters, found 0"):
        read_token_digest()
    monkeypatch.setenv("STOCK_AUDIT_TOKEN", TOKEN[:15])
    with pytest.raises(InputError, match="at least 16 characters, found 15"):
        read_token_digest()
    monkeypatch.setenv("STOCK_AUDIT_TOKEN", TOKEN)
    digest = read_token_digest()
    assert digest is not None and TOKEN.encode() not in digest
    assert is_authorized(f"Bearer {TOKEN}".encode(), digest)
    assert not is_authorized(f"Basic {TOKEN}".encode(), digest)
    monkeypatch.setenv("STOCK_AUDIT_TOKEN", f"{TOKEN}\n")  # as `kubectl create secret --from-file` keeps it
    assert read_token_digest() == digest


def test_the_record_model_is_learned_from_the_audits_recounts(tmp_path: Path, bundle: Path) -> None:
    info, audits, today = read_bundle_info(bundle), tmp_path / "audits", datetime.now(UTC).date()
    # of late, as what is learned comes from the last thirty days; the first of the two is counted
    write_nights(audits, [(today - timedelta(days=days)).isoformat() for days in (2, 1)], num_bins=300)
    with pytest.raises(InputError, match="no committed night"):
        learn_current_belief(str(tmp_path / "nothing"), info)
    assert learn_current_belief(str(audits), info).state == "learned"
    assert learn_current_belief(None, info).state == "assumed"
    # east of Greenwich a night is counted on the day that is still to begin here
    early = tmp_path / "early"
    write_nights(early, [(today + timedelta(days=days)).isoformat() for days in (0, 1)], num_bins=300)
    assert learn_current_belief(str(early), info).state == "learned"
    for top_class in (4, 8):
        with pytest.raises(InputError, match=f"with counts up to {top_class} as bundle .* found 6"):
            learn_current_belief(str(audits), info.model_copy(update={"top_class": top_class}))


def test_without_counts_classes_are_as_common_as_the_bundle_s_own_labels_say(bundle: Path) -> None:
    info = read_bundle_info(bundle)
    noisy = info.model_copy(update={"label_noise": info.label_noise.model_copy(update={"rate": 0.12})})
    found = learn_current_belief(None, noisy).record_model.class_shares
    assert found == pytest.approx(true_shares(info.label_histogram, 0.12))


def test_a_batch_that_is_larger_than_a_front_s_room_finds_room_before_the_network(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployed: dict[str, dict] = {}

    def deployment(kind: type, **options: object) -> SimpleNamespace:
        deployed[str(options.get("name", kind.__name__))] = options
        return SimpleNamespace(bind=lambda *given: None)

    on_two_cores = Resources("cpu", 1, 1.0, 0, 2, 2, 0.5, 0.1, 8, 1)
    monkeypatch.setattr(app.serve, "deployment", deployment)
    monkeypatch.setattr(app.ray, "cluster_resources", lambda: {"CPU": 2.0})
    monkeypatch.setattr(app, "settle_resources", lambda *_: (on_two_cores, "fp32"))
    build_app(EndpointSettings(bundle_uri=str(bundle), max_waiting=2))
    assert deployed["Counter"]["max_queued_requests"] == uploads.MAX_PHOTOS


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
    belief = learn_current_belief(None, read_bundle_info(bundle))
    never = SimpleNamespace(count=SimpleNamespace(remote=lambda pixels: asyncio.sleep(3600)))

    async def live() -> None:
        front = Front(never, FrontSettings(str(bundle), belief, None, 1, 1, 0.5))  # type: ignore[arg-type]
        async with asyncio.timeout(30):
            with pytest.raises(Problem) as late:
                await front.count(uploads.Upload(photo(3, 3), None, 3))
        assert late.value.cause == "timed_out"

        async def fail(pixels: np.ndarray) -> np.ndarray:
            raise GateError("the network gave a row that is no probability")

        front._counter = SimpleNamespace(count=SimpleNamespace(remote=fail))  # type: ignore[assignment]
        with pytest.raises(Problem) as defect:
            await front.count(uploads.Upload(photo(3, 3), None, 3))
        assert defect.value.cause == "internal_error"  # told to its caller alone, not to those of its whole batch

    asyncio.run(live())
    with pytest.raises(InputError, match="deployed with bundle another"):
        Front(never, FrontSettings(str(bundle), replace(belief, bundle_id="another"), None, 1, 1, 1.0))  # type: ignore[arg-type]


def front_of(bundle: Path, counter: object) -> tuple[Front, list[str]]:
    """A front before `counter`; the outcomes of the photos that it is given."""
    belief, outcomes = learn_current_belief(None, read_bundle_info(bundle)), []
    front = Front(counter, FrontSettings(str(bundle), belief, None, 1, 1, 30))  # type: ignore[arg-type]
    front.photos = SimpleNamespace(inc=lambda tags: outcomes.append(tags["outcome"]))  # type: ignore[assignment]
    return front, outcomes


@pytest.mark.parametrize("error", [RayActorError(), ReplicaUnavailableError("a")], ids=["dead", "going"])
@pytest.mark.parametrize(("num_deaths", "outcome"), [(TRIES - 1, "counted"), (TRIES, "unavailable")])
def test_a_photo_whose_replica_died_is_given_to_another_one(
    bundle: Path, error: Exception, num_deaths: int, outcome: str
) -> None:
    deaths = [error] * num_deaths

    async def count(pixels: np.ndarray) -> np.ndarray:
        if deaths:
            raise deaths.pop()
        return np.full(7, 1 / 7, np.float32)

    front, outcomes = front_of(bundle, SimpleNamespace(count=SimpleNamespace(remote=count)))
    with nullcontext() if outcome == "counted" else pytest.raises(Problem, match="3 replicas of the network died"):
        asyncio.run(front.count(uploads.Upload(photo(3, 3), None, 3)))
    assert outcomes == [outcome]


@pytest.mark.parametrize(
    ("error", "draining", "cause"),
    [
        (None, False, None),
        (BackPressureError(64, 64), False, None),  # it counts, and has much to do
        (RayActorError(), False, "unavailable"),
        (None, True, "shutting_down"),
    ],
    ids=["free", "full", "dead", "draining"],
)
def test_a_front_is_ready_while_the_network_answers_and_it_takes_photos(
    bundle: Path, error: Exception | None, draining: bool, cause: str | None
) -> None:
    async def ping() -> None:
        if error is not None:
            raise error

    front, _ = front_of(bundle, SimpleNamespace(ping=SimpleNamespace(remote=ping)))
    front.room.draining = draining
    found = None
    try:
        asyncio.run(front.check_ready())
    except Problem as problem:
        found = problem.cause
    assert found == cause


def test_the_page_asks_for_a_token_only_where_one_is_needed(bundle: Path) -> None:
    info = read_bundle_info(bundle)
    pages = [render_drop_page(info, needs_token=needed)[0] for needed in (False, True)]
    assert ['id="token"' in page for page in pages] == [False, True]


def test_a_stop_that_meets_one_of_ray_s_waits_is_told_as_a_stop(monkeypatch: pytest.MonkeyPatch, bundle: Path) -> None:
    def wait_as_ray_does(_: ServeConfig) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        except GateError as error:
            raise SystemError("returned a result with an exception set") from error

    monkeypatch.setattr(serve_job, "connect", lambda **_: nullcontext())
    monkeypatch.setattr(serve_job, "start_endpoint", wait_as_ray_does)
    with pytest.raises(GateError, match="told to stop before it had started"):
        serve_job.run_serve(ServeConfig(bundle_uri=str(bundle)))
