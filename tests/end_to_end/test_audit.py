"""The nightly audit as a user runs it, on a real cluster, from a real S3 server or from folders."""

from __future__ import annotations

import hashlib
import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import numpy as np
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import audit, recount
from jobs.counting.belief import Belief, true_shares
from jobs.platform import storage
from jobs.platform.parquet import read_table, write_table
from jobs.reporting import closing
from model.bundle_files import TRAINING_IMAGES_SCHEMA, read_bundle_info
from model.posterior import build_assessor
from model.recount_plan import draw_keys
from schemas.errors import InputError
from schemas.results import RESULTS_SCHEMA
from tests.dump import NIGHT, manifest_table, photo, write_bundle, write_dump

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

PLACES = [pytest.param("local", marks=pytest.mark.slow), pytest.param("s3", marks=pytest.mark.s3)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_bundle(tmp_path_factory.mktemp("bundle")))


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "local" else request.getfixturevalue("bucket")


def _audit(manifest: str, bundle: str, output: str, *flags: str) -> int:
    return audit.main(["--manifest-uri", manifest, "--bundle-uri", bundle, "--output-uri", output, *flags])


def _read(output: str, table: str = "results") -> pa.Table:
    """All committed rows of a table, as `views.sql` defines them, sorted by bin."""
    parts = [read_table(entry.uri) for entry in storage.list_objects(f"{output}/{table}")]
    summary = read_table(f"{output}/summary/audit_date={NIGHT}/summary.parquet")
    rows = pa.concat_tables(parts)
    return rows.filter(pa.compute.equal(rows["run_id"], summary["run_id"][0])).sort_by("bin_id")


@pytest.mark.parametrize("place", PLACES, indirect=True)
def test_every_bin_appears_once_whatever_its_photo(place: str, bundle: str) -> None:
    uris = [f"{place}/{'elsewhere' if number == 10 else 'bin-images'}/{number:05d}.jpg" for number in range(300)]
    manifest = write_dump(place, 300, image_uri=uris)
    storage.write_bytes(uris[10], photo(2, 10))
    storage.delete([f"{place}/bin-images/00007.jpg"])
    storage.write_bytes(f"{place}/bin-images/00008.jpg", b"")
    storage.write_bytes(f"{place}/bin-images/00009.jpg", photo(3, 3)[:-300])
    (part,) = storage.list_objects(manifest)
    table = read_table(part.uri)
    metadata = {**table.schema.metadata, b"images_uri": place.encode()}  # --allowed-root stands in its stead
    write_table(part.uri, table.replace_schema_metadata(metadata))
    flags = ["--recount-budget", "40", "--allowed-root", f"{place}/bin-images"]
    assert _audit(manifest, bundle, f"{place}/audits", *flags) == 0
    results = _read(f"{place}/audits")
    assert results.schema.equals(RESULTS_SCHEMA)
    assert results["bin_id"].to_pylist() == [f"{number:05d}" for number in range(300)]
    failed = {row["bin_id"]: row for row in results.to_pylist() if row["status"] != "scored"}
    assert {bin_id: row["status"] for bin_id, row in failed.items()} == {
        "00007": "missing_image",
        "00008": "unreadable_image",
        "00009": "unreadable_image",
        "00010": "image_rejected",
    }
    for row in failed.values():
        assert row["error"]
        assert (row["verdict"], row["reason"]) == ("not_assessed", row["status"])
        assert row["camera_qty"] is row["p_record_wrong"] is None
    assessed = [row for row in results.to_pylist() if row["verdict"] != "not_assessed"]
    for row in assessed:
        assert row["p_short"] + row["p_over"] == pytest.approx(row["p_record_wrong"], abs=1e-6)
        assert sum(row["probabilities"]) == pytest.approx(1, abs=1e-5)
        assert row["certified_at"] is None
    plan = _read(f"{place}/audits", "recount_plan").to_pylist()
    assert sorted(row["recount"] for row in plan) == ["priority"] * 28 + ["random"] * 12
    assert {row["inclusion_probability"] for row in plan if row["recount"] == "priority"} == {1.0}
    summary = read_table(f"{place}/audits/summary/audit_date={NIGHT}/summary.parquet").to_pylist()[0]
    assert (summary["num_bins"], summary["num_assessed"]) == (300, len(assessed))
    assert (summary["record_model"], summary["error_rate"], summary["ira"]) == ("assumed", None, None)


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The audits' folder with a night of 20 bins: the first has moved, of four the photo is too old or too new or of
    unknown age (of the first too), of two the bundle has learned from it."""
    folder = tmp_path_factory.mktemp("night")
    digests = [hashlib.sha256(photo(number % 8, number)).hexdigest() for number in (8, 9)]
    seen = pa.Table.from_pydict(
        {"image_sha256": digests, "bin_id": ["00008", "00009"], "split": ["train", "test"]},
        schema=TRAINING_IMAGES_SCHEMA,
    )
    bundle = str(write_bundle(folder / "bundle", seen=seen))
    read = datetime(2026, 11, 22, 12, tzinfo=UTC)
    manifest = write_dump(
        str(folder),
        20,
        moves_since_photo=[2] + [0] * 19,
        unit_value=[1.0] * 20,
        currency=["EUR", None] + ["EUR"] * 18,
        # too old, too new, of unknown age
        photo_at=[datetime(2026, 11, 19, tzinfo=UTC)] * 2
        + [datetime(2026, 11, 24, tzinfo=UTC), None]
        + [datetime(2026, 11, 22, tzinfo=UTC)] * 16,
        expected_as_of=[read] * 20,
    )
    flags = ["--max-photo-age-hours", "24", "--node-price", "3.6"]
    assert _audit(manifest, bundle, f"{folder}/audits", *flags) == 0
    return folder / "audits"


def test_duckdb_and_polars_read_the_night_and_it_has_its_price(night: Path, capsys: pytest.CaptureFixture[str]) -> None:
    database = duckdb.connect()
    database.execute((night / "views.sql").read_text())
    assert database.sql("SELECT count(*), count(DISTINCT bin_id) FROM results").fetchall() == [(20, 20)]
    assert database.sql("SELECT count(*) FROM recount_plan").fetchall() == [(15,)]  # all that are assessed
    database.close()
    rows = polars.read_parquet(f"{night}/results/*/*.parquet", hive_partitioning=True)
    assert rows["bin_id"].n_unique() == 20
    assert str(rows["audit_date"][0]) == NIGHT
    summary = read_table(f"{night}/summary/audit_date={NIGHT}/summary.parquet").to_pylist()
    (document,) = night.glob("runs/*/run.json")
    seconds = json.loads(document.read_text())["outcome"]["seconds"]
    # one node; the price is settled just before the commit, which the run's own seconds (rounded to tenths) include
    assert 0.5 * seconds < summary[0]["price_per_1000_images"] * 20 <= seconds + 0.05
    assert {row["price_per_1000_images"] for row in summary[1:]} == {None}
    # values in a currency and in none have no sum
    assert {row[name] for row in summary for name in ("value_at_risk", "recorded_value")} == {None}
    places = (f"{night.parent}/manifest", f"{night.parent}/bundle", f"{night.parent}/other")
    assert _audit(*places, "--objective", "value") == 2
    assert "expected one currency, found none, EUR" in capsys.readouterr().err


def test_a_committed_night_is_finished_by_the_same_command_where_its_report_failed_or_its_driver_died_and_replaced_on_demand(
    tmp_path: Path, bundle: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(config: object) -> None:
        raise InputError("report: can't be written")

    manifest, output, report = write_dump(str(tmp_path), 30), f"{tmp_path}/audits", tmp_path / "report"
    with monkeypatch.context() as patch:
        patch.setattr(closing, "write_report", fail)
        assert _audit(manifest, bundle, output, "--report-uri", str(report)) == 1
    said = capsys.readouterr()
    assert f"night {NIGHT} is committed by run" in said.out
    assert f"the night {NIGHT} is committed, but its report is not written (report: can't be written)" in said.err
    assert f"python -m jobs.report --output-uri {output} --audit-date {NIGHT} --report-uri {report}" in said.err
    written = _read(output)
    assert written.num_rows == 30
    assert _audit(manifest, bundle, output) == 2
    assert "already committed" in capsys.readouterr().err
    (document,) = Path(output).glob("runs/*/run.json")
    run = json.loads(document.read_text())
    assert (run["outcome"]["config"]["report_uri"], "ray" in run["outcome"]["versions"]) == (str(report), True)
    # as it is between the commit and what follows it
    document.write_text(json.dumps({name: value for name, value in run.items() if name != "outcome"}))
    (document.parent / "staged").mkdir(exist_ok=True)
    (document.parent / "staged" / "00000.parquet").write_bytes(b"left")
    assert _audit(manifest, bundle, output, "--report-uri", str(report)) == 0
    assert "30 scored" in capsys.readouterr().out
    assert _read(output).equals(written)
    outcome = json.loads(document.read_text())["outcome"]
    assert outcome.keys() == run["outcome"].keys()
    assert (outcome["config"]["report_uri"], outcome["statuses"]) == (str(report), {"scored": 30})
    # of the try that committed they are not known any more
    assert (outcome["seconds"], outcome["scored_in_this_try"]) == (None, None)
    assert not list((document.parent / "staged").iterdir())
    assert (report / "report.json").exists()
    # a report that was not written is written; a night with all that was asked for is refused, and replaced on demand
    (report / "report.json").unlink()
    assert _audit(manifest, bundle, output, "--report-uri", str(report)) == 0
    assert (report / "report.json").exists()
    assert _audit(manifest, bundle, output, "--report-uri", str(report)) == 2
    assert _audit(manifest, bundle, output, "--report-uri", str(report), "--replace") == 0
    again = _read(output)
    assert again["run_id"][0] != written["run_id"][0]
    assert again.drop_columns(["run_id"]).equals(written.drop_columns(["run_id"]))
    assert len(list(storage.list_objects(f"{output}/results"))) == 1


def test_beyond_a_gate_nothing_is_committed_and_the_message_says_what_dominates(
    tmp_path: Path, bundle: str, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest, output = write_dump(str(tmp_path), 30), tmp_path / "audits"
    storage.delete(f"{tmp_path}/bin-images/{number:05d}.jpg" for number in range(5))
    flags = ("--recount-budget", "0")
    assert _audit(manifest, bundle, str(output), *flags) == 1
    message = capsys.readouterr().err
    assert "5 of 30 images are missing_image" in message
    assert f"below {tmp_path}/bin-images: not found" in message
    assert not (output / "summary").exists()
    (findings,) = output.glob("runs/*/findings.json")
    assert json.loads(findings.read_text())["findings"][0]["images"] == 5
    # mended, the same command goes on: only what had no score is tried again
    for number in range(5):
        storage.write_bytes(f"{tmp_path}/bin-images/{number:05d}.jpg", photo(number, number))
    assert _audit(manifest, bundle, str(output), *flags) == 0
    (document,) = output.glob("runs/*/run.json")
    outcome = json.loads(document.read_text())["outcome"]
    assert (outcome["statuses"], outcome["scored_in_this_try"]) == ({"scored": 30}, 5)
    # an empty budget has an empty plan
    assert [pq.read_table(path).num_rows for path in output.glob("recount_plan/*/*.parquet")] == [0]
    summary = read_table(f"{output}/summary/audit_date={NIGHT}/summary.parquet")
    assert summary["drill_recall"].null_count == summary.num_rows, "no list that could hold anything"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--manifest-uri", "{tmp}/nowhere"), "expected a Parquet file or a folder of .parquet files, found none"),
        (("--bundle-uri", "{tmp}/nowhere"), "expected a bundle"),
        (("--output-uri", "/proc/audits"), "can't be written"),
        (("--objective", "value"), "expected a unit_value in every row"),
        (("--audit-date", "2020-01-01"), f"the manifest is of {NIGHT}"),
        (("--alpha", "1.5"), "expected less than 1"),
        (("--report-uri", "/proc/report"), "can't be written"),
        (("--precision", "fp16"), "--precision fp16: expected a GPU"),
        (("--no-such-flag", "1"), "no-such-flag"),
    ],
    ids=["manifest", "bundle", "output", "value", "night", "alpha", "report", "fp16", "flag"],
)
def test_bad_arguments_exit_2_before_anything_is_scored(
    tmp_path: Path, bundle: str, capsys: pytest.CaptureFixture[str], flags: tuple[str, str], message: str
) -> None:
    name, value = flags[0], flags[1].format(tmp=tmp_path)
    arguments = {"--manifest-uri": "", "--bundle-uri": bundle, "--output-uri": f"{tmp_path}/audits"}
    if name != "--manifest-uri":
        arguments["--manifest-uri"] = write_dump(str(tmp_path), 3)
    arguments[name] = value
    assert audit.main([part for pair in arguments.items() for part in pair]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("audits/runs/*/staged/*"))


@pytest.mark.parametrize(
    "in_the_way", ["results", "recount_plan", f"summary/audit_date={NIGHT}/_writable/of-another-owner"]
)
def test_a_table_that_could_not_be_written_is_refused_before_anything_is_scored(
    tmp_path: Path, bundle: str, capsys: pytest.CaptureFixture[str], in_the_way: str
) -> None:
    storage.write_bytes(f"{tmp_path}/audits/{in_the_way}", b"")
    table = in_the_way.partition("/")[0]
    assert _audit(write_dump(str(tmp_path), 3), bundle, f"{tmp_path}/audits") == 2
    assert f"audits/{table}/audit_date={NIGHT}/_writable: can't be written" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "audits").iterdir()] == [table]


def test_moved_and_stale_bins_and_photos_the_bundle_has_learned_from_are_scored_but_not_assessed(night: Path) -> None:
    rows = _read(str(night))
    assert rows["status"].to_pylist() == ["scored"] * 20
    left_out = dict(enumerate(["moved", "stale_photo", "stale_photo", "stale_photo"])) | {8: "training_photo"}
    assert rows["reason"].to_pylist() == [left_out.get(number) for number in range(20)]
    not_assessed = [row["verdict"] == "not_assessed" for row in rows.to_pylist()]
    assert not_assessed == [number in left_out for number in range(20)]


@pytest.fixture(scope="module")
def first_night(tmp_path_factory: pytest.TempPathFactory, bundle: str) -> Path:
    """A night of 60 bins, which hold their number modulo 8, with a plan of 30; for who goes on from it to copy."""
    folder = tmp_path_factory.mktemp("first")
    assert _audit(write_dump(str(folder), 60), bundle, f"{folder}/audits", "--recount-budget", "30") == 0
    return folder


def test_nobody_is_sent_to_what_is_known_until_its_record_changes(
    tmp_path: Path, bundle: str, first_night: Path
) -> None:
    """Four bins are found right, wrong twice, wrong once, and wrong and then corrected."""
    output, night = str(shutil.copytree(first_night / "audits", tmp_path / "audits")), "2026-11-23"
    planned = [row["bin_id"] for row in _read(output, "recount_plan").to_pylist()]
    right, twice, once, corrected = chosen = [name for name in planned if int(name) % 8 < 5][:4]
    rows = ["bin_id,audit_date,counted_qty,counted_at,counter_id"]
    for name, people in ((right, "kim"), (twice, "kim lee"), (once, "kim"), (corrected, "kim")):
        found = int(name) % 8 + (name != right)
        rows += [f"{name},{NIGHT},{found},{NIGHT}T23:00:00Z,{person}" for person in people.split()]
    counts = tmp_path / "counts.csv"
    counts.write_text("\n".join(rows))
    assert recount.main(["--output-uri", output, "--counts-uri", str(counts)]) == 0
    records = [number % 8 + (number == int(corrected)) for number in range(60)]
    table = manifest_table(f"{first_night}/bin-images", records)
    metadata = {**table.schema.metadata, b"audit_date": night.encode()}
    write_table(f"{tmp_path}/next/part-0.parquet", table.replace_schema_metadata(metadata))
    assert _audit(f"{tmp_path}/next", bundle, output, "--recount-budget", "56", "--random-share", "0") == 0
    parts = storage.list_objects(f"{output}/results/audit_date={night}")
    results = pa.concat_tables([read_table(part.uri) for part in parts]).sort_by("bin_id").to_pylist()
    by_bin = {row["bin_id"]: row for row in results}
    told = [tuple(by_bin[name][column] for column in ("reason", "verdict", "recount")) for name in chosen]
    waiting = [("counted_wrong", "suspect", None), ("second_count", "suspect", None)]
    assert told == [("counted", "ok", None), *waiting, ("counted", "ok", None)]
    assert all((row["reason"], row["recount"]) == (None, "priority") for row in results if row["bin_id"] not in chosen)
    (whole, *_) = read_table(f"{output}/summary/audit_date={night}/summary.parquet").to_pylist()
    assert 0.5 < whole["drill_recall"] <= 1, "nearly all bins are listed"


def test_what_was_counted_is_learned_and_claimed_by_the_next_night(
    tmp_path: Path, bundle: str, first_night: Path
) -> None:
    output, night = str(shutil.copytree(first_night / "audits", tmp_path / "audits")), "2026-11-23"
    plan = _read(output, "recount_plan").to_pylist()
    wrong = {row["bin_id"]: place % 5 == 0 for place, row in enumerate(plan)}
    rows = [
        f"{bin_id},{NIGHT},{int(bin_id) % 8 + is_wrong},{NIGHT}T23:00:00Z,true" for bin_id, is_wrong in wrong.items()
    ]
    counts = tmp_path / "counts.csv"
    counts.write_text("\n".join(["bin_id,audit_date,counted_qty,counted_at,confirmed", *rows]))
    assert recount.main(["--output-uri", output, "--counts-uri", str(counts)]) == 0

    records = [number % 8 for number in range(60)]
    table = manifest_table(f"{first_night}/bin-images", records, unit_value=[1.0 + number % 7 for number in range(60)])
    metadata = {**table.schema.metadata, b"audit_date": night.encode()}
    write_table(f"{tmp_path}/next/part-0.parquet", table.replace_schema_metadata(metadata))
    flags = ["--recount-budget", "20", "--objective", "value", "--seed", "5", "--count-valid-nights", "0"]
    assert _audit(f"{tmp_path}/next", bundle, output, *flags) == 0
    (document,) = Path(output).glob(f"runs/{night}-*/run.json")
    belief = Belief.from_dict(json.loads(document.read_text())["belief"])
    (whole, *_) = read_table(f"{output}/summary/audit_date={night}/summary.parquet").to_pylist()
    assert whole["record_model"] == belief.state == "learned"
    # what scores as high as the list is known, and the other random bins stand for the rest
    doubted = {row["bin_id"]: row["p_record_wrong"] for row in _read(output).to_pylist()}
    limit = min(doubted[row["bin_id"]] for row in plan if row["recount"] == "priority")
    known = [wrong[row["bin_id"]] for row in plan if doubted[row["bin_id"]] >= limit]
    others = [wrong[row["bin_id"]] for row in plan if doubted[row["bin_id"]] < limit]
    assert known and others
    assert whole["error_rate"] == pytest.approx((sum(known) + (60 - len(known)) * np.mean(others)) / 60)
    shares = true_shares(np.bincount(np.minimum(records, 6), minlength=7))
    assert belief.record_model.class_shares == pytest.approx(shares.tolist())

    (part,) = storage.list_objects(f"{output}/results/audit_date={night}")
    found = read_table(part.uri).to_pylist()
    info = read_bundle_info(Path(bundle))
    assessor = build_assessor(info.label_histogram, belief.noise_rate, belief.record_model)
    probabilities = np.array([row["probabilities"] for row in found], np.float32)
    doubt = assessor.assess(probabilities, np.array([row["expected_qty"] for row in found]))["p_record_wrong"]
    assert [row["p_record_wrong"] for row in found] == pytest.approx(doubt.tolist(), abs=1e-6)
    assert all(row["certificate_p"] is not None and row["reason"] is None for row in found)
    listed = sorted((row for row in found if row["rank"]), key=lambda row: row["rank"])
    at_risk = [row["value_at_risk"] for row in listed]
    assert at_risk == sorted(at_risk, reverse=True) and len(at_risk) == 10
    bin_ids = np.array([row["bin_id"] for row in found])
    first = set(bin_ids[np.argsort(draw_keys(bin_ids, 5, night))[:10]])
    assert {row["bin_id"] for row in found if row["recount"] == "random"} == first
