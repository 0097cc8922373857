"""From settings to a Serve application: `jobs.serve` runs it, and so does `serve deploy` with this file:

    # endpoint.yaml: serve deploy endpoint.yaml
    proxy_location: EveryNode
    http_options: {host: 0.0.0.0, port: 8000}
    logging_config: {encoding: JSON}
    applications:
      - name: stock-audit
        route_prefix: /
        import_path: jobs.serving.app:build_app
        args: {bundle_uri: "s3://stock/bundle", output_uri: "s3://stock/audits", max_replicas: 8}

Stop a jobs.serve that runs on the cluster before: both name the same application, which ends with that command.

The package must be installed on the cluster (or named by runtime_env's working_dir). A bearer token is taken from
STOCK_AUDIT_TOKEN in the environment that Ray's nodes were started with (in Kubernetes an env entry with a secretKeyRef
on every pod). Never name it in this file: `runtime_env` and `args` are shown in Ray's dashboard and by `serve config`.
"""

# No `from __future__ import annotations`: Serve reads the builder's annotation to turn `args` into settings.

from dataclasses import replace
from datetime import UTC, datetime

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig, BackpressureConfig
from ray.serve.schema import LoggingConfig

from jobs.config.serve import EndpointSettings
from jobs.counting.belief import Belief, learn_belief, read_class_shares, true_shares
from jobs.counting.history import History, day_after, read_history
from jobs.counting.last_counts import nothing_counted
from jobs.platform.bundles import local_bundle
from jobs.platform.cluster import CHECK_CPUS, await_slot, network_environment
from jobs.platform.layout import list_nights
from jobs.platform.uris import absolute
from jobs.serving.access import read_token_digest
from jobs.serving.counter import Counter
from jobs.serving.front import Front, FrontSettings
from jobs.serving.uploads import MAX_PHOTOS
from jobs.stages.resources import Resources, settle_resources
from model.bundle_files import read_training_images
from schemas.bundle import BundleInfo
from schemas.errors import InputError

APP_NAME = "stock-audit"

FRONT_TARGET = 32
"""Requests in flight at a front beyond which another one starts, where several may: not by the network's batch, which on a
GPU is hundreds of photos, more than one process decodes in time."""

SHUTDOWN_S = 60.0
"""How long a replica may finish what it took."""

MIN_WAITING = 64

# One line of JSON per request comes from our gate; Serve's own would be a second one.
LOGGING = LoggingConfig(encoding="JSON", enable_access_log=False)


def build_app(settings: EndpointSettings) -> serve.Application:
    """The application for the connected cluster. Raises InputError for settings that don't fit, GateError for a cluster
    without CPUs."""
    bundle_uri = absolute(settings.bundle_uri)
    bundle = _check_bundle(bundle_uri)
    if not ray.cluster_resources().get("CPU"):
        await_slot(CHECK_CPUS)  # for a task that waits a cluster grows
    belief = learn_current_belief(settings.output_uri, bundle)
    resources, precision = settle_resources(settings.precision, bundle)
    batch_size = settings.batch_size or resources.batch_size
    max_waiting = settings.max_waiting or max(MIN_WAITING, 4 * batch_size)
    counter = serve.deployment(  # type: ignore[attr-defined]
        Counter,
        # What Serve's router holds back it offers again after pauses of up to half a second, whoever is free: with one
        # batch at work and one forming as the limit, batches of one photo fell from 25 a second to 6.
        # One more, for the question whether a replica is there: it must not wait for a batch to end.
        max_ongoing_requests=max(2 * batch_size, max_waiting) + 1,
        # a batch that is larger than a front's room has it alone, and must fit
        max_queued_requests=max(max_waiting, MAX_PHOTOS),
        ray_actor_options=_counter_options(resources),
        graceful_shutdown_timeout_s=SHUTDOWN_S,
        logging_config=LOGGING,
        **_scaling(settings.max_replicas or resources.num_scorers, batch_size),
    ).bind(replace(resources.plan_scorer(bundle_uri, bundle, precision), batch_size=batch_size))
    front_settings = FrontSettings(
        bundle_uri=bundle_uri,
        belief=belief,
        token_digest=read_token_digest(),
        max_waiting=max_waiting,
        max_body_bytes=settings.max_body_bytes,
        request_timeout_s=settings.request_timeout_s,
    )
    # Decoding keeps up with a network on a CPU by far; beside GPUs it is what must grow.
    num_fronts = resources.num_fetchers if resources.device == "cuda" else 1
    return serve.deployment(  # type: ignore[attr-defined]
        serve.ingress()(Front),
        name="Front",
        # above our own limit, so that the gate answers; beyond this Serve's proxy does. As many may be on their way to a
        # front: in a burst the router holds them while it looks for one.
        max_ongoing_requests=2 * max_waiting + 100,
        max_queued_requests=2 * max_waiting + 100,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
        ray_actor_options={"num_cpus": resources.fetcher_cpus},
        graceful_shutdown_timeout_s=SHUTDOWN_S,
        logging_config=LOGGING,
        **_scaling(num_fronts, max(1, min(max_waiting // 2, FRONT_TARGET))),
    ).bind(counter, front_settings)


def learn_current_belief(output_uri: str | None, bundle: BundleInfo) -> Belief:
    """What an audit would believe now: learned from the recounts below `output_uri`, assumed without one. Raises InputError
    where no night is committed there, or the last one counted up to another top class."""
    today = datetime.now(UTC).date().isoformat()
    if output_uri is None:
        no_counts = nothing_counted()
        shares = true_shares(bundle.label_histogram, bundle.label_noise.rate)
        return learn_belief(History((), (), no_counts), bundle, shares)
    output_uri = absolute(output_uri)
    nights = list_nights(output_uri)
    if not nights:
        raise InputError(f"{output_uri}: expected the output of jobs.audit, found no committed night")
    history = read_history(output_uri, max(today, day_after(nights[-1])))
    of_last_night = read_class_shares(output_uri, nights[-1])
    if len(of_last_night) != bundle.num_classes:
        raise InputError(
            f"{output_uri}: expected the night {nights[-1]} to be audited with counts up to {bundle.top_class} as bundle "
            f"{bundle.bundle_id} has them, found {len(of_last_night) - 1}; leave --output-uri out, or audit with this bundle first"
        )
    return learn_belief(history, bundle, of_last_night)


def _check_bundle(uri: str) -> BundleInfo:
    # torch comes with it, so not at the top: bad flags should fail at once
    from model.bundle import load_bundle

    with local_bundle(uri) as folder:
        # whole, as its replicas will: Serve would start one that can't load it again and again
        info = load_bundle(folder).info
        read_training_images(folder, info)
    return info


def _counter_options(resources: Resources) -> dict:
    options: dict = {"num_cpus": resources.scorer_cpus, "num_gpus": resources.scorer_gpus}
    if resources.device == "cpu":
        options["runtime_env"] = {"env_vars": network_environment(resources.scorer_threads)}
    return options


def _scaling(max_replicas: int, target: int) -> dict:
    """One replica, or as many as keep `target` requests in flight at each."""
    if max_replicas == 1:
        return {"num_replicas": 1}
    return {
        "autoscaling_config": AutoscalingConfig(
            min_replicas=1, max_replicas=max_replicas, target_ongoing_requests=target
        )
    }
