"""The site that faults are injected at, and the table of what they did."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from jobs.platform import storage
from jobs.platform.parquet import write_table
from jobs.platform.uris import join
from jobs.stages.score import SHARING_SHARDS
from tests.conftest import S3_ENVIRONMENT, free_port, make_bucket
from tests.dump import manifest_table, write_bundle, write_photos
from tests.faults.disturbed_runs import ROOT, Site, Trial, read_views
from tests.faults.faulty_network import FaultyNetwork, Server
from tests.faults.ray_nodes import RAY_ENVIRONMENT, RayNodes

NUM_CPUS = 2
NUM_BINS, ROWS_PER_FILE = 48, 48 // (2 * SHARING_SHARDS)
"""A shard never crosses files: so many that one scorer, and two, compute some at once, as in any night of usual size. Those of
nodes with one CPU can't share it and compute one after the other."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--faults-json", help="write the fault table there")


@pytest.fixture(scope="package")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Everything of a nightly audit, and one night of it audited undisturbed."""
    with ExitStack() as stack:
        server, port = Server(tmp_path_factory.mktemp("faults-s3")), free_port()
        stack.callback(server.stop)
        network = FaultyNetwork(port, server.endpoint)
        stack.callback(network.stop)
        address = f"http://127.0.0.1:{port}"
        environment = {**S3_ENVIRONMENT, "AWS_ENDPOINT_URL": address, "PYTHONPATH": str(ROOT)}
        nodes = RayNodes(environment, num_cpus=NUM_CPUS)
        stack.callback(nodes.stop)
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        place = make_bucket()
        manifest_uri, bundle_uri = f"{place}/manifest", f"{place}/bundle"
        write_small_night(f"{place}/bin-images", manifest_uri)
        storage.upload_folder(write_bundle(tmp_path_factory.mktemp("bundle")), bundle_uri, last="bundle.json")
        environment |= {**RAY_ENVIRONMENT, "RAY_ADDRESS": nodes.address}
        site = Site(server, network, nodes, place, manifest_uri, bundle_uri, environment)
        audit = site.start(f"{place}/undisturbed")
        assert audit.wait() == 0, audit.log()
        site.num_requests = len(network.faults.seen)
        site.undisturbed = read_views(f"{place}/undisturbed")
        below = f"/{place.removeprefix('s3://')}/undisturbed/"
        site.writes = [
            f"{method} {path.removeprefix(below)}"
            for method, path in network.faults.seen
            if method not in ("GET", "HEAD") and path.startswith(below)
        ]
        patch.undo()
        yield site


@pytest.fixture
def trial(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[Trial]:
    """A fresh output to audit into. The tests themselves talk to the server directly, past the faulty network."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", site.server.endpoint)
    site.network.heal()
    trial = Trial(site, f"{site.place}/out-{uuid.uuid4().hex[:8]}")
    yield trial
    trial.reader.stop()
    for audit in site.started:  # of a test that failed
        audit.kill()
        audit.wait()
        audit.close()
    site.started.clear()
    site.network.heal()


@pytest.fixture
def record(record_property: Callable[[str, object], None]) -> Callable[[str, dict], None]:
    """Puts a verdict into the fault table, which is printed at the end; `{"not_injected": why}` where there is none."""
    return lambda fault, verdict: record_property(ROW, {"fault": fault, **verdict})


ROW = "fault table"
"""Travels with a test's report."""


def write_small_night(images_uri: str, manifest_uri: str) -> None:
    quantities = [number % 8 for number in range(NUM_BINS)]
    write_photos(images_uri, quantities)
    etags = {entry.uri: entry.etag for entry in storage.list_objects(images_uri)}
    table = manifest_table(images_uri, quantities)
    table = manifest_table(images_uri, quantities, image_etag=[etags[uri] for uri in table["image_uri"].to_pylist()])
    for start in range(0, NUM_BINS, ROWS_PER_FILE):
        uri = join(manifest_uri, f"part-{start:05d}.parquet")
        write_table(uri, table.slice(start, ROWS_PER_FILE))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    ended = [report for reports in terminalreporter.stats.values() for report in reports]
    ended = [report for report in ended if getattr(report, "when", None) == "teardown"]
    rows = [row for report in ended for name, row in report.user_properties if name == ROW]
    if not rows:
        return
    faults: dict[str, list[dict]] = {}
    for row in rows:
        faults.setdefault(row["fault"], []).append(row)
    terminalreporter.section("faults")
    lines = [
        "| fault | times | rows lost | rows doubled | readable early | seconds to recover | tries |",
        "|---|" + "---:|" * 6,
    ]
    for fault, found in faults.items():
        judged = [row for row in found if "not_injected" not in row]
        if len(judged) < len(found):
            why = next(row["not_injected"] for row in found if "not_injected" in row)
            lines.append(f"| {fault}: NOT INJECTED, {why} | {len(found) - len(judged)} | | | | | |")
        if not judged:
            continue
        seconds = sorted(row["seconds"] for row in judged)
        spread = f"{seconds[0]:.0f}" if len(seconds) == 1 else f"{seconds[0]:.0f} to {seconds[-1]:.0f}"
        num_times = sum(row.get("times", 1) for row in judged)
        sums = " | ".join(str(sum(row[name] for row in judged)) for name in ("lost", "doubled", "early"))
        lines.append(f"| {fault} | {num_times} | {sums} | {spread} | {max(row['tries'] for row in judged)} |")
    terminalreporter.write_line("\n".join(lines))
    path = config.getoption("--faults-json", default=None)
    if path:
        Path(path).write_text(json.dumps(rows, indent=1))
