from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.platform import storage
from jobs.platform.parquet import read_table, write_table
from jobs.platform.uris import join
from jobs.stages.images import Photo
from jobs.training import labelled_bins
from jobs.training.labelled_bins import check_photos, fingerprint, read_labelled_bins
from schemas.errors import GateError, InputError
from schemas.results import ImageStatus
from tests.dots import NUM_BINS, few_bins, training_config, write_dump
from tests.dump import blank_frame, manifest_table, write_photos


@pytest.mark.parametrize("name", ["bin_id", "group", "image_sha256"])
def test_other_groups_or_photos_are_other_data(name: str) -> None:
    """Else a training would go on with weights that have learned from what tests now."""
    bins = few_bins().append_column("image_sha256", pa.array([f"{i:064x}" for i in range(NUM_BINS)]))
    values = pa.array(["another", *bins[name].to_pylist()[1:]])
    changed = bins.set_column(bins.schema.get_field_index(name), name, values)
    assert fingerprint(changed) != fingerprint(bins)


@pytest.mark.ray
def test_photos_that_are_nowhere_or_may_not_be_read_are_refused(ray_cluster: None, tmp_path: Path) -> None:
    uri = write_dump(tmp_path / "gone", image_uri=[str(tmp_path / f"gone/bin-images/{i}.jpg") for i in range(NUM_BINS)])
    with pytest.raises(InputError, match=r"found none: 200 of 200 .*200 missing_image"):
        check_photos(read_labelled_bins(training_config(uri)), training_config())
    inside, outside = tmp_path / "dump" / "bin-images", tmp_path / "elsewhere" / "a.jpg"
    strange = [str(outside), f"{inside}/../../elsewhere/a.jpg", f"{inside}/a\tb.jpg", "s3://b/k"]
    uris = strange + [str(inside / f"{i:05d}.jpg") for i in range(len(strange), NUM_BINS)]
    made = training_config(write_dump(tmp_path / "dump", image_uri=uris))
    outside.parent.mkdir()
    shutil.copy(inside / "00009.jpg", outside)
    (inside / "00011.jpg").write_bytes(blank_frame())
    found = check_photos(read_labelled_bins(made), made)
    assert found.table.num_rows == NUM_BINS - len(strange) - 1
    assert sum(found.left_out.values()) == len(strange) + 1
    assert found.left_out["image_rejected"] >= 3
    assert found.left_out["poor_photo"] == 1
    with pytest.raises(GateError, match=r"5 of 200 photos can't be used .*--max-unusable-share allows 1%"):
        check_photos(read_labelled_bins(made), made.model_copy(update={"max_unusable_share": 0.01}))


def test_a_manifest_that_names_no_place_for_its_photos_needs_a_root(tmp_path: Path) -> None:
    uri = Path(write_dump(tmp_path / "dump"))
    pq.write_table(pq.read_table(uri).replace_schema_metadata(None), uri)
    with pytest.raises(InputError, match="--allowed-root"):
        read_labelled_bins(training_config(str(uri)))
    assert read_labelled_bins(training_config(str(uri), allowed_root=("/photos",))).roots == ("/photos",)


def test_files_that_disagree_on_the_place_of_their_photos_need_a_root(tmp_path: Path) -> None:
    table = read_table(write_dump(tmp_path / "dump"))
    for number, place in enumerate(("/first", "/second")):
        part = table.slice(100 * number, 100).replace_schema_metadata({"images_uri": place})
        write_table(str(tmp_path / "parts" / f"{number}.parquet"), part)
    uri = str(tmp_path / "parts")
    with pytest.raises(InputError, match="the files disagree on images_uri; say with --allowed-root"):
        read_labelled_bins(training_config(uri))
    assert read_labelled_bins(training_config(uri, allowed_root=("/photos",))).roots == ("/photos",)


def test_what_else_a_manifest_holds_is_not_read(tmp_path: Path) -> None:
    """Two columns of one name, as a join leaves them, are none that audit or evaluation would refuse."""
    uri = Path(write_dump(tmp_path / "dump"))
    table = pq.read_table(uri)
    plain = read_labelled_bins(training_config(str(uri))).table
    for value in ("x", "y"):
        table = table.append_column("note", pa.array([value] * NUM_BINS))
    pq.write_table(table, uri)
    assert read_labelled_bins(training_config(str(uri))).table.equals(plain)


def test_bins_without_a_group_are_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = training_config(write_dump(tmp_path / "dump", group=[None, *["block"] * (NUM_BINS - 1)]))
    with caplog.at_level(logging.WARNING):
        assert read_labelled_bins(made).table["group"].to_pylist().count("00000") == 1
    assert "1 of 200 bins name no group" in caplog.text


@pytest.mark.ray
def test_a_photo_that_can_never_be_fetched_is_left_out(ray_cluster: None, tmp_path: Path) -> None:
    made = training_config(write_dump(tmp_path / "dump"))
    photo = tmp_path / "dump" / "bin-images" / "00003.jpg"
    photo.unlink()
    photo.symlink_to(photo)  # neither gone nor to be read
    assert check_photos(read_labelled_bins(made), made).left_out == {"fetch_failed": 1}


@pytest.mark.ray
@pytest.mark.s3
def test_a_photo_that_changed_since_it_was_listed_is_left_out(ray_cluster: None, bucket: str) -> None:
    write_photos(f"{bucket}/bin-images", [1, 2])
    etags = [entry.etag for entry in storage.list_objects(f"{bucket}/bin-images")]
    uri = f"{bucket}/manifest"
    table = manifest_table(f"{bucket}/bin-images", [1, 2], image_etag=etags)
    write_table(join(uri, "part-0.parquet"), table)
    write_photos(f"{bucket}/bin-images", [5])  # the first bin's
    made = training_config(uri, max_unusable_share=0.5)
    found = check_photos(read_labelled_bins(made), made)
    assert found.left_out == {"fetch_failed": 1}
    assert found.table["bin_id"].to_pylist() == ["00001"]
    assert "image_etag" not in found.table.column_names


def test_bins_whose_stock_has_moved_since_the_photo_do_not_train(tmp_path: Path) -> None:
    moves = [1 if i == 4 else None if i == 5 else 0 for i in range(NUM_BINS)]
    found = read_labelled_bins(training_config(write_dump(tmp_path / "some", moves_since_photo=moves)))
    assert set(found.table["bin_id"].to_pylist()) == {f"{i:05d}" for i in range(NUM_BINS)} - {"00004"}
    assert found.left_out == {"moved": 1}
    with pytest.raises(InputError, match="moves_since_photo: expected bins whose stock has not moved"):
        read_labelled_bins(training_config(write_dump(tmp_path / "all", moves_since_photo=[2] * NUM_BINS)))


def test_the_fingerprint_covers_records_and_not_the_layout(tmp_path: Path) -> None:
    manifest_uri = write_dump(tmp_path / "dump")
    bins = read_labelled_bins(training_config(manifest_uri)).table
    table = read_table(manifest_uri)
    (tmp_path / "parts").mkdir()
    pq.write_table(table.slice(120), tmp_path / "parts" / "a.parquet")
    pq.write_table(table.slice(0, 120), tmp_path / "parts" / "b.parquet")
    assert fingerprint(read_labelled_bins(training_config(str(tmp_path / "parts"))).table) == fingerprint(bins)
    changed = bins.set_column(2, "expected_qty", pa.array([7, *bins["expected_qty"].to_pylist()[1:]], pa.int32()))
    assert fingerprint(changed) != fingerprint(bins)


class LastBlockFirst:
    """In place of Ray Data, which gives blocks back in the order in which they end."""

    def __init__(self, blocks: list[pa.Table]) -> None:
        self.blocks = blocks

    def map_batches(self, check: Callable[..., pa.Table], *, fn_kwargs: Any, **options: Any) -> LastBlockFirst:
        return LastBlockFirst([check(block, **fn_kwargs) for block in self.blocks])

    def iter_batches(self, **options: Any) -> Iterator[pa.Table]:
        return reversed(self.blocks)


@pytest.fixture
def blocks_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labelled_bins, "ROWS_PER_TASK", 50)
    monkeypatch.setattr(labelled_bins, "task_pool", lambda num_blocks: None)
    monkeypatch.setattr(labelled_bins.ray.data, "from_blocks", LastBlockFirst)


def test_a_photo_s_hash_is_its_bin_s_in_whatever_order_blocks_end(blocks_in_any_order: None, tmp_path: Path) -> None:
    moves = [1, *[0] * (NUM_BINS - 1)]
    # as many as may be missing of the rest
    made = training_config(
        write_dump(tmp_path / "dump", moves_since_photo=moves), max_unusable_share=1 / (NUM_BINS - 1)
    )
    (tmp_path / "dump" / "bin-images" / "00003.jpg").unlink()
    found = check_photos(read_labelled_bins(made), made)
    assert found.left_out == {"moved": 1, "missing_image": 1} and found.table.num_rows == NUM_BINS - 2
    for row in found.table.to_pylist():
        assert row["image_sha256"] == hashlib.sha256(Path(row["image_uri"]).read_bytes()).hexdigest()


@pytest.mark.parametrize("change", ["another", "gone"])
def test_a_manifest_that_is_written_anew_while_it_is_read_trains_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    table = read_table(write_dump(tmp_path / "dump"))
    uri, first = str(tmp_path / "manifest"), tmp_path / "manifest" / "part-00000.parquet"
    write_table(str(first), table.slice(0, 100))
    write_table(str(first.with_name("part-00001.parquet")), table.slice(100))
    read_bytes = storage.read_bytes

    def replaced_meanwhile(name: str) -> bytes:
        data = read_bytes(name)
        second = first.with_name("part-00001.parquet")
        second.unlink() if change == "gone" else write_table(str(second), table.slice(150))
        return data

    monkeypatch.setattr(storage, "read_bytes", replaced_meanwhile)
    with pytest.raises(InputError, match="was written anew while it was read"):
        read_labelled_bins(training_config(uri))


def test_a_photo_that_storage_did_not_deliver_is_waited_for(
    blocks_in_any_order: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(rows: pa.Table, *some: Any) -> list[Photo]:
        gone = Photo(ImageStatus.FETCH_FAILED, "503", gave_up=True)
        sound = Photo(ImageStatus.SCORED, None, None, bytes(32))
        return [gone if uri.endswith("00003.jpg") else sound for uri in rows["image_uri"].to_pylist()]

    monkeypatch.setattr(labelled_bins, "fetch_photos", fetch)
    made = training_config(write_dump(tmp_path / "dump"))
    with pytest.raises(GateError, match=r"1 of 200 photos .*when storage is back, the same command goes on"):
        check_photos(read_labelled_bins(made), made)
