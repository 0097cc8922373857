"""The exploration reads every record, a fixed sample of the photos, and finds what is odd."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from jobs import explore
from jobs.exploring import survey
from jobs.exploring.looks import draw_sample, look_at
from jobs.exploring.records import RecordFacts, gather_facts
from jobs.platform.parquet import write_table
from jobs.platform.uris import join
from jobs.stages.images import FetchPlan
from schemas.bundle import Preprocessing
from tests.dump import manifest_table, photo, write_photos

NUM_BINS = 40


def write_manifest(folder: Path) -> str:
    """40 bins; 5 has an inconsistent record, 6 a huge one, 7 no photo, 9 the photo of 8."""
    quantities = [number % 8 for number in range(NUM_BINS)]
    images = folder / "bin-images"
    write_photos(str(images), quantities)
    quantities[6] = 5000
    (images / "00007.jpg").unlink()
    (images / "00009.jpg").write_bytes((images / "00008.jpg").read_bytes())
    inconsistent = [number == 5 for number in range(NUM_BINS)]
    skus = [[{"sku": "S", "name": "<b>bold</b>", "quantity": 2}] for _ in range(NUM_BINS)]
    shared = [str(images / f"{12 if number == 13 else number:05d}.jpg") for number in range(NUM_BINS)]
    table = manifest_table(str(images), quantities, record_inconsistent=inconsistent, skus=skus, image_uri=shared)
    uri = str(folder / "manifest")
    write_table(join(uri, "part-0.parquet"), table)
    return uri


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_the_page_shows_what_is_odd_in_a_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest, output = write_manifest(tmp_path), tmp_path / "out"
    assert explore.main(["--manifest-uri", manifest, "--output-uri", str(output)]) == 0
    told = capsys.readouterr().out
    assert "40 bins in 4 groups; by quantity 0: 5, 1: 5, 2: 5, 3: 5, 4: 5, 5: 5, 6 or more: 10" in told
    assert "40 photos looked at, 1 of them fail" in told
    assert "1 records whose total differs from their lines, 2 photos shown by several bins" in told
    assert [path.name for path in output.iterdir()] == ["index.html"]
    page = (output / "index.html").read_text()
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", page))
    assert "00005: expected 5, its lines sum to 2" in text
    assert "00006: expected 5,000" in text and "00006: expected 5,000, its lines" not in text
    assert "00008, 00009: same content" in text
    assert "00012, 00013: same" in text
    assert "missing_image" in text
    assert "<b>bold" not in page
    assert "<script" not in page
    outside = [link for link in re.findall(r'(?:src|href)="([^"]+)"', page) if not link.startswith(("#", "data:"))]
    assert not outside


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_manifest_that_is_not_there_exits_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert explore.main(["--manifest-uri", str(tmp_path / "none"), "--output-uri", str(tmp_path / "out")]) == 2
    assert "expected a Parquet file or a folder" in capsys.readouterr().err


def test_no_photos_to_look_at_is_refused(tmp_path: Path) -> None:
    assert explore.main(["--manifest-uri", "m", "--output-uri", str(tmp_path), "--num-photos", "0"]) == 2


def test_of_each_value_the_first_bins_are_kept_whatever_the_order() -> None:
    ids = [f"{number:05d}" for number in range(100)]
    rows = pa.table({"bin_id": ids, "image_uri": ["x"] * 90 + ["y"] * 10, "image_etag": ids})
    backwards = rows.take(pa.array(range(99, -1, -1)))
    found = survey._first_of_each(
        pa.concat_tables([backwards.slice(50), backwards.slice(0, 50)]), "image_uri", ["x", "y"]
    )
    assert found["bin_id"].to_pylist() == ids[: survey.MAX_IDENTICAL] + ids[90:]


def test_the_sample_depends_on_seed_and_bin_alone() -> None:
    bin_ids = [f"{number:05d}" for number in range(4000)]
    sample = draw_sample(bin_ids, 0.25, 0)
    assert sum(sample) == pytest.approx(1000, abs=100)
    assert draw_sample(bin_ids[::-1], 0.25, 0) == sample[::-1]
    assert draw_sample(bin_ids, 0.25, 1) != sample
    assert all(draw_sample(bin_ids, 1.0, 0))
    wider = draw_sample(bin_ids, 0.5, 0)
    assert all(wide for wide, narrow in zip(wider, sample, strict=True) if narrow)


def test_facts_of_parts_add_up_to_the_facts_of_all() -> None:
    generator = np.random.default_rng(0)
    quantities = generator.integers(0, 400, 100).tolist()
    odd = (generator.random(100) < 0.3).tolist()
    rows = manifest_table("/photos", quantities, record_inconsistent=odd)
    whole = gather_facts(rows)
    merged = RecordFacts()
    for start in (60, 0, 30):
        merged.merge(gather_facts(rows.slice(start, 40 if start == 60 else 30)))
    assert merged == whole
    assert whole.largest[0]["expected_qty"] == max(quantities)
    assert whole.num_inconsistent == sum(odd)


def test_a_dark_flat_photo_measures_darker_and_flatter(tmp_path: Path) -> None:
    from PIL import Image

    images = tmp_path / "bin-images"
    images.mkdir()
    Image.new("RGB", (60, 40), (10, 10, 10)).save(images / "00000.jpg")
    (images / "00001.jpg").write_bytes(photo(5, 1))
    plan = FetchPlan(Preprocessing(image_size=32), (str(images),), False, None)
    flat, lively, gone = look_at(manifest_table(str(images), [0, 5, 1]), plan)
    assert flat["brightness"] == pytest.approx(10, abs=1)
    assert flat["contrast"] < 1 < lively["contrast"]
    assert flat["detail"] < lively["detail"]
    assert (flat["width"], flat["height"]) == (60, 40)
    assert gone["status"] == "missing_image"
