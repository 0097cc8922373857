"""Generated samples: the layout, the truth beside the records, and the same bytes however they are drawn."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from jobs.platform import storage
from jobs.platform.parquet import read_table
from jobs.sample import main
from jobs.sampling.contents import DIFFERENCE_SHARES, DIFFERENCES, draw_contents, render_record
from jobs.sampling.dump import write_bins
from jobs.sampling.photo import draw_photo
from jobs.sampling.placing import place_pieces
from jobs.sampling.prints import blank, print_face
from schemas.abid import parse_record

NUM_BINS = 60


def sample(output_uri: object, *flags: str, seed: int = 3, num_bins: int = NUM_BINS, rate: float = 0.3) -> int:
    arguments = ["--output-uri", str(output_uri), "--num-bins", str(num_bins), "--seed", str(seed)]
    return main([*arguments, "--record-error-rate", str(rate), *flags])


@pytest.fixture(scope="module")
def dump(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample") / "dump"
    assert sample(folder) == 0
    return folder


def read_truth(folder: Path) -> dict[str, int]:
    table = read_table(str(folder / "truth.parquet"))
    assert table.column_names == ["bin_id", "true_qty"]
    return dict(zip(*(column.to_pylist() for column in table.columns), strict=True))


@pytest.mark.ray
def test_a_sample_has_abids_layout_and_its_truth(dump: Path) -> None:
    ids = [f"{number:05d}" for number in range(1, NUM_BINS + 1)]
    assert sorted(path.name for path in dump.iterdir()) == ["bin-images", "metadata", "sample.json", "truth.parquet"]
    assert sorted(path.name for path in (dump / "bin-images").iterdir()) == [f"{name}.jpg" for name in ids]
    assert sorted(path.name for path in (dump / "metadata").iterdir()) == [f"{name}.json" for name in ids]
    assert list(read_truth(dump)) == ids
    assert json.loads((dump / "sample.json").read_text())["settings"]["seed"] == 3


@pytest.mark.ray
def test_truth_differs_from_exactly_the_wrong_records(dump: Path) -> None:
    wrong = 0
    for name, true_qty in read_truth(dump).items():
        record = parse_record((dump / "metadata" / f"{name}.json").read_bytes())
        contents = draw_contents(3, int(name), 0.3)
        assert not record.inconsistent
        assert (true_qty, record.expected_qty) == (contents.true_qty, contents.recorded_qty)
        wrong += true_qty != record.expected_qty
    assert 8 <= wrong <= 30  # 60 bins at 0.3


@pytest.mark.ray
def test_files_do_not_depend_on_how_the_bins_were_shared_out(dump: Path, tmp_path: Path) -> None:
    for first, last in ((31, 33), (7, 12)):
        write_bins(str(tmp_path), 3, 0.3, first, last)
    for path in [*tmp_path.glob("*/*")]:
        assert path.read_bytes() == (dump / path.relative_to(tmp_path)).read_bytes(), path.name
    assert len(list(tmp_path.glob("*/*"))) == 14


@pytest.mark.ray
def test_the_same_command_again_completes_the_sample(dump: Path) -> None:
    before = {path: path.read_bytes() for path in dump.rglob("*.*") if path.is_file()}
    (dump / "bin-images" / "00011.jpg").unlink()
    (dump / "truth.parquet").unlink()
    assert sample(dump) == 0
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.ray
def test_another_sample_is_not_written_over_it(dump: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (dump / "bin-images" / "00001.jpg").read_bytes()
    assert sample(dump, seed=4) == 2
    assert str(dump) in capsys.readouterr().err
    assert (dump / "bin-images" / "00001.jpg").read_bytes() == before


def test_a_folder_that_holds_something_else_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    assert sample(tmp_path) == 2
    assert "thesis.txt" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("flags", [{"num_bins": 0}, {"rate": 1.5}, {"seed": -1}])
def test_settings_out_of_range_are_refused(tmp_path: Path, flags: dict) -> None:
    assert sample(tmp_path / "new", **flags) == 2
    assert not (tmp_path / "new").exists()


@pytest.mark.ray
@pytest.mark.s3
def test_a_sample_on_s3_is_the_same_as_a_local_one(ray_cluster: None, bucket: str, dump: Path) -> None:
    assert sample(f"{bucket}/some/sample") == 0
    stored = {entry.uri.removeprefix(f"{bucket}/some/sample/") for entry in storage.list_objects(f"{bucket}/some")}
    assert stored == {str(path.relative_to(dump)) for path in dump.rglob("*.*") if path.is_file()}
    for name in ("bin-images/00007.jpg", "metadata/00007.json"):
        assert storage.read_bytes(f"{bucket}/some/sample/{name}") == (dump / name).read_bytes()


def test_quantities_are_spread_like_abids() -> None:
    counts = Counter(min(6, draw_contents(1, number, 0.0).true_qty) for number in range(2000))
    shares = [counts[quantity] / 2000 for quantity in range(7)]
    assert shares == pytest.approx([0.02, 0.08, 0.14, 0.17, 0.15, 0.12, 0.32], abs=0.03)


def test_the_asked_share_of_records_is_wrong_with_the_known_differences() -> None:
    bins = [draw_contents(1, number, 0.5) for number in range(2000)]
    differences = Counter(bin_.true_qty - bin_.recorded_qty for bin_ in bins)
    assert 1 - differences.pop(0) / len(bins) == pytest.approx(0.5, abs=0.035)
    wrong = differences.total()
    for difference, share in zip(DIFFERENCES, DIFFERENCE_SHARES, strict=True):
        assert differences[difference] / wrong == pytest.approx(share, abs=0.05), difference


def test_no_record_is_wrong_at_rate_zero_and_all_are_at_one() -> None:
    for number in range(300):
        right, wrong = draw_contents(2, number, 0.0), draw_contents(2, number, 1.0)
        assert right.true == wrong.true == right.recorded
        assert wrong.recorded_qty != wrong.true_qty
        assert all(count > 0 for _, count in wrong.recorded)


def test_names_of_all_scripts_survive_the_record() -> None:
    names: set[str] = set()
    for number in range(1, 400):
        contents = draw_contents(5, number, 0.2)
        record = parse_record(render_record(contents.recorded))
        assert {(line.sku, line.name, line.quantity) for line in record.lines} == {
            (sku.asin, sku.name, count) for sku, count in contents.recorded
        }
        names |= {line.name or "" for line in record.lines}
    for part in ("=", "<", "&", '"', ",", "ü", "🎉", "不锈钢"):
        assert any(part in name for name in names), part


def test_records_have_every_field_of_abids() -> None:
    lines = [
        line
        for number in range(1, 200)
        for line in json.loads(render_record(draw_contents(5, number, 0.0).recorded))["BIN_FCSKU_DATA"].items()
    ]
    fields = {"asin", "name", "normalizedName", "quantity", "height", "length", "width", "weight"}
    for asin, line in lines:
        assert set(line) == fields
        assert line["asin"] == asin
        assert line["length"]["value"] >= line["width"]["value"] >= line["height"]["value"] > 0
        assert line["weight"] is None or line["weight"]["unit"] == "pounds"


def test_products_recur_in_neighbouring_bins_only() -> None:
    blocks = [
        Counter(sku.asin for number in range(start, start + 100) for sku, _ in draw_contents(5, number, 0.0).true)
        for start in (100, 200)
    ]
    assert sum(count > 1 for count in blocks[0].values()) > 0.3 * len(blocks[0])
    assert not set(blocks[0]) & set(blocks[1])


def test_photos_are_about_as_large_as_abids_and_not_all_of_one_size() -> None:
    photos = [draw_photo(7, number, draw_contents(7, number, 0.0).true) for number in range(1, 41)]
    shapes = {cv2.imdecode(np.frombuffer(photo, np.uint8), cv2.IMREAD_COLOR).shape[:2] for photo in photos}
    assert len(shapes) > 30
    assert 300 <= np.median([width for _, width in shapes]) <= 600
    assert 25_000 <= np.median([len(photo) for photo in photos]) <= 80_000


def test_no_piece_stands_outside_its_bin() -> None:
    opening = (400, 260)
    for number in range(1, 1500):
        for placement in place_pieces(draw_contents(7, number, 0.0).true, opening, np.random.default_rng(number)):
            # stacks are not quite plumb
            assert -0.05 < placement.x / opening[0] < 1.05


def test_pieces_of_one_product_have_one_print_whatever_their_shape() -> None:
    sku = next(sku for number in range(1, 50) for sku, _ in draw_contents(7, number, 0.0).true if sku.kind == "box")
    differences = []
    for look in range(200):
        prints = []
        for height in (129, 131):  # on either side of where words may run up the face
            face = blank(100, height, sku.colour)
            print_face(face, replace(sku, look=look), np.random.default_rng(look))
            prints.append(cv2.resize(face, (50, 65), interpolation=cv2.INTER_AREA).astype(int))
        differences.append((np.abs(prints[0] - prints[1]).max(axis=2) > 40).mean())
    assert np.mean(np.array(differences) > 0.05) < 0.5  # those on which a large word turns


def test_pieces_show_in_the_photo_and_change_nothing_else() -> None:
    (sku, _), *_ = draw_contents(7, 1, 0.0).true or draw_contents(7, 2, 0.0).true
    empty, one, three = (
        cv2.imdecode(np.frombuffer(draw_photo(7, 5, pieces), np.uint8), cv2.IMREAD_COLOR).astype(int)
        for pieces in ((), ((sku, 1),), ((sku, 3),))
    )
    seen = [(np.abs(photo - empty).max(axis=2) > 20).mean() for photo in (one, three)]
    assert 0.01 < seen[0] < seen[1] < 0.9
    # The rims and their labels are in front of everything.
    assert np.abs(three[-10:] - empty[-10:]).max() <= 20
