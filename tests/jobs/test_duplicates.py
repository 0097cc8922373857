from pathlib import Path

import pyarrow as pa
import pytest
import ray

from jobs.platform.cluster import CHECK_CPUS
from jobs.platform.parquet import write_table
from jobs.platform.uris import join
from jobs.stages import duplicates
from jobs.stages.duplicates import find_duplicates, find_places

pytestmark = pytest.mark.ray


def write_ids(folder: str, *files: list[str | None]) -> list[str]:
    uris = []
    for index, ids in enumerate(files):
        uris.append(join(folder, f"part-{index}.parquet"))
        table = pa.table({"bin_id": pa.array(ids, pa.string()), "other": pa.nulls(len(ids), pa.int32())})
        write_table(uris[-1], table, row_group_size=1000)
    return uris


def test_an_id_that_stands_twice_is_found_across_files_and_within_one(ray_cluster: None, tmp_path: Path) -> None:
    first = [f"bin-{number:05d}" for number in range(5000)]
    files = write_ids(str(tmp_path), first, ["bin-00007", "other", "", ""], ["bin-00007", None, None])
    assert find_duplicates(files, "bin_id", limit=10) == [("", 2), ("bin-00007", 3)]


def test_of_an_id_the_first_rows_are_named_however_many_there_are(ray_cluster: None, tmp_path: Path) -> None:
    first = [None, *(f"bin-{number:06d}" for number in range(70_000))]
    files = write_ids(str(tmp_path), first, ["bin-069999", "bin-000000", None, "bin-000000"], ["bin-000000"])
    places = {"bin-000000": [(files[0], 2), (files[1], 2)], "bin-069999": [(files[0], 70_001), (files[1], 1)]}
    assert find_places(files, "bin_id", list(places)) == places


def test_ids_that_differ_only_a_little_are_no_duplicates(ray_cluster: None, tmp_path: Path) -> None:
    files = write_ids(str(tmp_path), ["1", "01", "001", "1 ", "é", "e\u0301", "A", "a", "\x00", "\x00\x00"])
    assert find_duplicates(files, "bin_id", limit=10) == []


def test_more_duplicates_than_asked_for_give_as_many_as_asked_for(ray_cluster: None, tmp_path: Path) -> None:
    ids = [f"bin-{number:05d}" for number in range(5000)]
    found = find_duplicates(write_ids(str(tmp_path), ids, ids), "bin_id", limit=3)
    assert len(found) == 3
    assert all(count == 2 for _, count in found)


@ray.remote
class Holder:
    def ready(self) -> bool:
        return True


def test_they_are_found_where_other_jobs_hold_all_but_a_quarter_of_a_cpu(ray_cluster: None, tmp_path: Path) -> None:
    holder = Holder.options(num_cpus=ray.available_resources()["CPU"] - CHECK_CPUS).remote()
    assert ray.get(holder.ready.remote(), timeout=60)
    try:
        search = ray.remote(num_cpus=0)(find_duplicates).remote(
            write_ids(str(tmp_path), ["a", "b", "a"]), "bin_id", limit=10
        )
        assert ray.get(search, timeout=60) == [("a", 2)]
    finally:
        ray.kill(holder)


def test_no_rows_hold_no_duplicates(ray_cluster: None, tmp_path: Path) -> None:
    assert find_duplicates(write_ids(str(tmp_path), []), "bin_id", limit=10) == []


def test_many_ranges_and_pieces_find_what_one_finds(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [f"bin-{number:05d}" for number in range(5000)]
    files = write_ids(str(tmp_path), ids, ids[123:124] * 2, ids[4000:4002])
    expected = [("bin-00123", 3), ("bin-04000", 2), ("bin-04001", 2)]
    assert find_duplicates(files, "bin_id", limit=10) == expected
    # Only the driver decides on the number of ranges; the tasks take it as it comes.
    monkeypatch.setattr(duplicates, "PIECE_ROWS", 700)
    assert find_duplicates(files, "bin_id", limit=10) == expected


def test_ids_that_share_a_hash_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_cluster: None
) -> None:
    piece = duplicates._Piece(write_ids(str(tmp_path), ["a", "b", "a"])[0], (0,), 3)
    collided = duplicates._hash(pa.array(["a", "b"]))
    assert duplicates._count_ids._function(piece, "bin_id", collided) == {"a": 2, "b": 1}
