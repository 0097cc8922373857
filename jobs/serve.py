r"""The endpoint: a photo in, the number of items out, from the same bundle and the same code as the audit.

    python -m jobs.serve --bundle-uri demo/bundle --output-uri demo/audits

    ray job submit --no-wait --working-dir . --runtime-env-json '{"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "90"}}' \
        -- python -m jobs.serve --bundle-uri s3://stock/bundle --output-uri s3://stock/audits --host 0.0.0.0

Serves until SIGINT or SIGTERM, then finishes what it took, for up to 60 s. `ray job stop` sends SIGTERM, and SIGKILL
3 s later unless the job was submitted with a longer RAY_JOB_STOP_WAIT_TIME_S, as above. `/` is a page to drop a photo
on, `/docs` describes the API:

    curl --data-binary @bin.jpg -H 'Content-Type: image/jpeg' 'http://127.0.0.1:8000/v1/count?expected_qty=3'

Where STOCK_AUDIT_TOKEN is set, callers must send it as a bearer token. For a deployment that outlives this command see
`jobs/serving/app.py` (`serve deploy`). Writes nothing but Ray's logs. Exit codes: 0 stopped and all finished,
1 requests were left unfinished, Serve could not start or no replica could be kept up, 2 bad arguments or inputs.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import RayServeException

from jobs.config.serve import ServeConfig
from jobs.platform.cluster import await_free, await_slot, connect
from jobs.platform.command import run_command
from jobs.serving.access import TOKEN_VARIABLE, read_token_digest
from jobs.serving.app import APP_NAME, LOGGING, SHUTDOWN_S, build_app
from jobs.stages.resources import plan_resources
from schemas.errors import GateError, InputError

logger = logging.getLogger("jobs.serve")


SERVE_SETTINGS = {
    # a busy node takes longer than 5 s to start a process: Serve would kill its proxy on the way and fail
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    # fewer steps for each request, a fifth more photos a second on two cores:
    # a request goes from replica to replica by gRPC and not through Ray's object store
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    # our code never blocks the loop, so it needs no thread of its own, and the router neither
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "1",
}
"""Set for a cluster that this command starts, unless set already. Serve reads them in every process, so a cluster of your
own must be started with them."""


UNHEALTHY_SECONDS = 120.0
"""So long Serve may try to replace replicas before the endpoint ends: a large bundle takes its time to load."""

LOOK_SECONDS = 10.0
"""How often to look whether the endpoint is still there."""


def run_serve(config: ServeConfig) -> None:
    """Serves until a signal comes. Raises InputError before anything listens, GateError where work was left undone."""
    with connect(environment=SERVE_SETTINGS):
        stopped = threading.Event()

        def give_up(*_: object) -> None:
            # where Ray swallows the error, inside of `ray.get`, the endpoint stops as soon as it has started
            stopped.set()
            raise GateError("the endpoint was told to stop before it had started")

        with _on_stop(give_up):
            try:
                start_endpoint(config)
            except SystemError as error:  # what some of Ray's waits make of an error that a signal raises in them
                if not stopped.is_set():
                    raise
                raise GateError("the endpoint was told to stop before it had started") from error
        with _on_stop(lambda *_: stopped.set()):
            print(f"listening on http://{config.host}:{config.port}/ (API: /docs); stop with Ctrl-C", flush=True)
            unhealthy_since = None
            while not stopped.wait(LOOK_SECONDS):
                unhealthy_since = _check_running(unhealthy_since)
            _check_running()
            print("shutting down: finishing the requests that were taken", flush=True)
            stop_endpoint()


def start_endpoint(config: ServeConfig) -> None:
    """Starts Serve on the connected cluster and returns once photos are counted. Raises InputError, and GateError where
    it does not start."""
    _warn_if_open(config.host)
    application = build_app(config)
    if serve.status().proxies:
        raise InputError(
            "the cluster serves already: `serve shutdown` there ends that (also what a killed jobs.serve left behind); a "
            "jobs.serve that runs is stopped as it was started"
        )
    _check_port(config.host, config.port)
    await_replicas()
    try:
        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": config.host, "port": config.port},
            logging_config=LOGGING,
        )
        serve.run(application, name=APP_NAME, route_prefix="/")
    except (GateError, SystemError):  # told to stop; the first is one of the RuntimeErrors too
        serve.shutdown()
        raise
    except (RuntimeError, TimeoutError, RayActorError) as error:  # of a deployment, or of a proxy, that doesn't come up
        serve.shutdown()
        raise GateError(f"the endpoint did not start: {error}") from error


def await_replicas() -> None:
    """Returns when the cluster has room for one replica of each deployment, as there is at first. Raises GateError where other
    jobs hold it."""
    resources = plan_resources()
    cpus = resources.scorer_cpus + resources.fetcher_cpus
    if resources.scorer_gpus:
        await_free({"CPU": cpus, "GPU": resources.scorer_gpus})
    else:
        await_slot(cpus)  # for which a cluster that scales itself grows


def _check_running(unhealthy_since: float | None = None) -> float | None:
    """Raises GateError where the endpoint has gone, or has had nobody to count for UNHEALTHY_SECONDS, as where its bundle was
    replaced and a replica died (what looks after this command starts it again then). `unhealthy_since`, by the monotonic
    clock, is what the last look returned."""
    gone = GateError("the endpoint was ended from elsewhere (`serve shutdown` or `serve delete`)")
    try:
        applications = serve.status().applications
    except RayActorError as error:  # Serve's controller
        raise gone from error
    if APP_NAME not in applications:
        if not applications:
            serve.shutdown()  # `serve delete` leaves Serve itself, and the next start would find the cluster serving
        raise gone
    found = applications[APP_NAME]
    # of several replicas the others go on while one is replaced, and so does one that is to leave its node
    numbers = [
        sum(count for state, count in deployment.replica_states.items() if state in ("RUNNING", "PENDING_MIGRATION"))
        for deployment in found.deployments.values()
    ]
    if numbers and all(numbers):
        return None
    now = time.monotonic()
    if unhealthy_since is not None and now - unhealthy_since > UNHEALTHY_SECONDS:
        messages = [found.message, *(deployment.message for deployment in found.deployments.values())]
        lost = GateError(f"the endpoint can't be kept up: {' '.join(filter(None, messages))[-2000:]}")
        try:
            stop_endpoint()
        except GateError as error:  # no replica is left that could be drained
            logger.warning("the endpoint was not drained: %s", error)
        raise lost
    return unhealthy_since or now


def stop_endpoint() -> None:
    """Finishes what was taken, then ends Serve. Raises GateError where time ran out first."""
    try:
        # The network's replicas would go at once with the front's, so the front is emptied before.
        left = sum(serve.get_app_handle(APP_NAME).broadcast("drain", SHUTDOWN_S).results(timeout_s=SHUTDOWN_S + 10))
    except (RayActorError, RayServeException, TimeoutError) as error:  # as where a replica is being replaced just now
        raise GateError(f"the photos that were taken could not be finished: {error}") from error
    finally:
        serve.shutdown()  # or it would go on on the cluster, with nobody to stop it
    if left:
        raise GateError(f"{left} photos were not finished within {SHUTDOWN_S:g} s")


@contextmanager
def _on_stop(handler: Callable[..., None]) -> Iterator[None]:
    """What SIGINT and SIGTERM do meanwhile."""
    names = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(name, handler) for name in names]
    try:
        yield
    finally:
        for name, former in zip(names, before, strict=True):
            signal.signal(name, former)


def _check_port(host: str, port: int) -> None:
    """Serve's proxies share a port with whoever listens there, without a word."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except socket.gaierror as error:
        raise InputError(f"--host: expected an address of this machine, found {host!r}") from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise InputError(f"--port: {port} on {host} is in use; choose another one") from error
        raise InputError(f"--host, --port: can't listen on {host}:{port} ({error.strerror})") from error


def _warn_if_open(host: str) -> None:
    if read_token_digest() is None and not _is_loopback(host):
        logger.warning("%s can be reached from elsewhere, and %s is not set: anyone may ask", host, TOKEN_VARIABLE)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(ServeConfig, run_serve, job="serve", argv=argv)


if __name__ == "__main__":
    raise SystemExit(main())
