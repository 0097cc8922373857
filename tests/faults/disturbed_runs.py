"""Runs of the audit that something happens to, what a reader sees meanwhile, and what is left afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from jobs.platform import storage
from jobs.platform.uris import join
from schemas.errors import GateError
from tests.faults.faulty_network import FaultyNetwork, Server
from tests.faults.ray_nodes import RayNodes

ROOT = Path(__file__).parents[2]
TABLES = {"results": "bin_id", "recount_plan": "bin_id", "summary": "scope, scope_value"}
NOT_COMPARED = {"run_id", "images_per_second", "price_per_1000_images"}
MAX_TRIES = 4
"""The same command again, as cron or KubeRay would; more than this is no recovery."""
PATIENCE = 420
"""Seconds that one try may take before it counts as hung."""

Views = dict[str, pa.Table]


@dataclass
class Site:
    """A real S3 server behind a network that can fail, a real Ray cluster, and a night to audit."""

    server: Server
    network: FaultyNetwork
    nodes: RayNodes
    place: str
    manifest_uri: str
    bundle_uri: str
    environment: dict[str, str]
    """Of the drivers."""
    undisturbed: Views = field(default_factory=dict)
    num_requests: int = 0
    """That an undisturbed run makes."""
    writes: list[str] = field(default_factory=list)
    """What an undisturbed run writes and deletes, in order, as paths below its output."""
    started: list[Audit] = field(default_factory=list)

    def start(
        self,
        output_uri: str,
        *flags: str,
        command: tuple[str, ...] = ("-m", "jobs.audit"),
        ray_address: str | None = None,
    ) -> Audit:
        """Starts the audit of the night, in its usual way and on the site's cluster unless told otherwise."""
        places = ["--manifest-uri", self.manifest_uri, "--bundle-uri", self.bundle_uri, "--output-uri", output_uri]
        environment = self.environment | ({"RAY_ADDRESS": ray_address} if ray_address else {})
        audit = Audit([*command, *places, *flags], environment)
        self.started.append(audit)
        return audit


class Audit:
    """One driver process."""

    def __init__(self, arguments: list[str], environment: dict[str, str]) -> None:
        self._log = tempfile.NamedTemporaryFile(prefix="audit-", suffix=".log")  # noqa: SIM115 - open while it runs
        command = [sys.executable, *arguments]
        self.process = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **environment}, stdout=self._log, stderr=self._log
        )

    def kill(self) -> None:
        """SIGKILL, to the driver alone."""
        self.process.kill()

    def wait(self) -> int:
        try:
            return self.process.wait(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the audit hung for {PATIENCE} s:\n{self.log()[-4000:]}") from None

    def close(self) -> None:
        self._log.close()

    def log(self) -> str:
        """Its standard output and error so far."""
        return Path(self._log.name).read_text(errors="replace")


class Trial:
    """One injected fault: its run, a reader beside it, and the verdict."""

    def __init__(self, site: Site, output_uri: str) -> None:
        self.site, self.output_uri = site, output_uri
        self.num_tries = 0
        self.logs: list[str] = []
        self._injected_at: float | None = None
        self.reader = Reader(output_uri, site.undisturbed["results"].num_rows)
        self.reader.start()

    def inject(self) -> None:
        """Says that the fault happens now."""
        self._injected_at = self._injected_at or time.monotonic()

    def run(self, *flags: str, **options) -> Audit:  # type: ignore[no-untyped-def]
        """One try of the command, to its end."""
        audit = self.site.start(self.output_uri, *flags, **options)
        audit.wait()
        return self.note(audit)

    def note(self, audit: Audit) -> Audit:
        self.num_tries += 1
        self.logs.append(audit.log())
        return audit

    def recover(self, *flags: str, **options) -> None:  # type: ignore[no-untyped-def]
        """The same command until the night is committed."""
        while self.num_tries < MAX_TRIES:
            code = self.run(*flags, **options).process.returncode
            if code == 0 or (code == 2 and "already committed" in self.logs[-1]):
                return
        raise AssertionError(f"not committed after {self.num_tries} tries; the last said:\n{self.logs[-1][-4000:]}")

    def judge(self, expected: Views | None = None) -> dict[str, float]:
        """Compares what the views give with the undisturbed run. Returns the fault table's columns."""
        seconds = time.monotonic() - (self._injected_at or time.monotonic())
        early = self.reader.stop()
        found, expected = read_views(self.output_uri), expected or self.site.undisturbed
        lost, doubled = compare_bins(expected["results"], found.get("results"))
        verdict = {
            "lost": lost,
            "doubled": doubled,
            "early": early,
            "seconds": round(seconds, 1),
            "tries": self.num_tries,
        }
        assert self._injected_at is not None, f"the fault never happened:\n{self.logs[-1][-3000:]}"
        assert self.reader.num_reads > 0, "nobody read meanwhile, so nothing was seen early"
        assert (lost, doubled, early) == (0, 0, 0), verdict
        for table in TABLES:
            assert_same_rows(expected[table], found[table], table)
        return verdict


class Reader(threading.Thread):
    """Reads the views again and again, as a planner's tool might, and counts what it should not have seen."""

    def __init__(self, output_uri: str, num_bins: int) -> None:
        super().__init__(name="reader", daemon=True)
        self._output_uri, self._num_bins = output_uri, num_bins
        self._ended = threading.Event()
        self.num_early = 0
        self.num_reads = 0

    def run(self) -> None:
        while not self._ended.wait(1.0):
            try:
                before = self._commits()
                whole = self._finds_whole()
                # what was read while a replacement was committed and tidied up is of both nights: begin anew
                torn = before and before != self._commits()
            except (FileNotFoundError, GateError):
                continue  # a file went between listing and reading, or the storage is away
            self.num_reads += 1
            if not whole and not torn:
                self.num_early += 1

    def _finds_whole(self) -> bool:
        try:
            return is_whole(read_views(self._output_uri), self._num_bins)
        except duckdb.IOException:
            return False  # a summary, and none of the files that belong to it

    def _commits(self) -> list[tuple[str, str | None]]:
        return [(entry.uri, entry.etag) for entry in storage.list_objects(join(self._output_uri, "summary"))]

    def stop(self) -> int:
        self._ended.set()
        self.join(timeout=120)
        return self.num_early


def is_whole(views: Views, num_bins: int) -> bool:
    """Whether a reader found nothing yet, or a night with every bin once and the plan that its summary counts."""
    if not views:
        return True
    whole = views["summary"].filter(pc.equal(views["summary"]["scope"], "all")).to_pylist()
    if len(whole) != 1 or whole[0]["num_bins"] != num_bins:
        return False
    expected = {"results": num_bins, "recount_plan": whole[0]["num_priority"] + whole[0]["num_random"]}
    return all(
        views[table].num_rows == count == pc.count_distinct(views[table]["bin_id"]).as_py()
        for table, count in expected.items()
    )


def read_views(output_uri: str) -> Views:
    """What `views.sql` gives in DuckDB, by table, sorted; nothing before the first night is committed.

    The files are copied to this machine first, the summary before the parts: a reader that follows the views opens
    the summary first too, and DuckDB's own S3 client would have to be downloaded.
    """
    with tempfile.TemporaryDirectory(prefix="views-") as folder:
        for table in ("summary", "results", "recount_plan", "counted"):
            for entry in storage.list_objects(join(output_uri, table)):
                target = Path(folder) / entry.uri.removeprefix(output_uri.rstrip("/") + "/")
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(storage.read_bytes(entry.uri))
        if not (Path(folder) / "summary").exists():
            return {}
        views = storage.read_bytes(join(output_uri, "views.sql")).decode()
        with duckdb.connect() as database:
            database.execute(views.replace(output_uri.rstrip("/"), folder))
            return {
                table: database.sql(f"SELECT * FROM {table} ORDER BY {order}").to_arrow_table()
                for table, order in TABLES.items()
            }


def compare_bins(expected: pa.Table, found: pa.Table | None) -> tuple[int, int]:
    """Bins that are not there, and rows beyond the first of their bin."""
    counts = Counter(found["bin_id"].to_pylist() if found is not None else [])
    lost = sum(bin_id not in counts for bin_id in expected["bin_id"].to_pylist())
    return lost, sum(count - 1 for count in counts.values())


def assert_same_rows(expected: pa.Table, found: pa.Table, table: str) -> None:
    kept = [name for name in expected.column_names if name not in NOT_COMPARED]
    for name in kept:
        assert found[name].to_pylist() == expected[name].to_pylist(), f"{table}.{name} differs from the undisturbed run"
