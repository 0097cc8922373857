from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from jobs.stages.progress import Progress
from jobs.stages.resources import resolve_precision
from jobs.stages.score import SCORED_SCHEMA, with_probabilities
from jobs.stages.staging import FETCHED_SHARD_SCHEMA, MAX_FINDINGS, StagedShard, trim_findings
from model import processor
from schemas.errors import GateError, InputError
from tests.dump import manifest_table


def _shard(pixels: list[bytes | None], probabilities: list[list[float] | None]) -> pa.Table:
    n = len(pixels)
    rows = manifest_table("s3://bench/bin-images", [1] * n)
    added = {
        "status": pa.repeat("scored", n),
        "error": pa.nulls(n, pa.string()),
        "training_photo": pa.repeat(False, n),
        "contrast": pa.nulls(n, pa.float32()),
        "pixels": pa.array(pixels, pa.binary()),
        "probabilities": pa.array(probabilities, pa.list_(pa.float32())),
        "shard": pa.repeat(pa.scalar(3, pa.int32()), n),
        "fresh": pa.repeat(True, n),
        "scored_at": pa.nulls(n, pa.float64()),
    }
    columns = [added[name] if name in added else rows[name] for name in FETCHED_SHARD_SCHEMA.names]
    return pa.Table.from_arrays(columns, schema=FETCHED_SHARD_SCHEMA)


def test_answers_go_to_the_rows_with_pixels_and_the_others_keep_theirs() -> None:
    rows = _shard([None, b"x", None, b"y"], [[1.0, 0.0], None, None, None])
    scored = with_probabilities(rows, np.array([[0.25, 0.75], [0.5, 0.5]], np.float32), 12.5)
    assert scored.schema.equals(SCORED_SCHEMA)
    assert scored["probabilities"].to_pylist() == [[1.0, 0.0], [0.25, 0.75], None, [0.5, 0.5]]
    assert scored["scored_at"].to_pylist() == [12.5] * 4
    assert scored["bin_id"].to_pylist() == rows["bin_id"].to_pylist()
    in_two_pieces = pa.concat_tables([rows.slice(0, 1), rows.slice(1)])
    assert with_probabilities(in_two_pieces, np.array([[0.25, 0.75], [0.5, 0.5]], np.float32), 12.5).equals(scored)


def test_the_rate_is_that_of_the_steady_state() -> None:
    progress = Progress(num_bins=40, max_unreadable_share=1, max_missing_share=1)
    assert progress.images_per_second() is None
    for index, (num_fresh, scored_at) in enumerate([(10, 102.0), (10, 100.0), (0, None), (10, 104.0)]):
        progress.add(StagedShard(index, 10, num_fresh, scored_at, {"scored": 10}, Counter()))
    # twenty images in the four seconds after the first shard, whichever was staged first
    assert progress.images_per_second() == pytest.approx(5.0)


def _failed_shard(index: int, *failures: tuple[str, str, int]) -> StagedShard:
    """Each failure in a folder of its own: status, error, how many."""
    folders = {
        (status, error, f"s3://b/{index}-{status}-{number}"): 1
        for status, error, count in failures
        for number in range(count)
    }
    statuses = Counter({"scored": 250 - len(folders)})
    statuses.update(status for status, _, _ in folders)
    return StagedShard(index, 250, 0, None, dict(statuses), trim_findings(Counter(folders)))


def test_the_commonest_cause_is_found_among_many_kinds() -> None:
    progress = Progress(num_bins=10_000, max_unreadable_share=0.05, max_missing_share=0.9)
    crowd = [("missing_image", "not found", 150), ("unreadable_image", "empty", 20), ("unreadable_image", "text", 25)]
    with pytest.raises(GateError, match=r"300 of them: unreadable_image in many folders: text\. Nothing"):
        for index in range(40):
            progress.add(_failed_shard(index, *crowd))
    assert sum(progress.findings.values()) == sum(progress.statuses.values()) - progress.statuses["scored"]
    assert len(progress.findings) <= 2 * MAX_FINDINGS


def test_a_gate_without_findings_says_what_it_knows() -> None:
    progress = Progress(num_bins=10, max_unreadable_share=0.05, max_missing_share=0.05)
    with pytest.raises(GateError, match=r"10 of 10 images .* \(seen so far: 10 bins\)\. Nothing was committed"):
        progress.add(StagedShard(0, 10, 0, None, {"missing_image": 10}, Counter()))


def test_fp16_is_refused_on_a_cpu() -> None:
    with pytest.raises(InputError, match="--precision fp16: expected a GPU"):
        resolve_precision("fp16", "cpu")


@pytest.mark.parametrize(
    ("asked", "device", "flags", "found"),
    [
        ("auto", "cuda", set(), "bf16"),
        ("auto", "cpu", {"avx2", "avx512f"}, "fp32"),
        ("auto", "cpu", {"avx512f", "avx512_bf16"}, "bf16"),
        ("auto", "cpu", {"avx512f", "amx_bf16"}, "bf16"),
        ("fp32", "cuda", {"avx512_bf16"}, "fp32"),
    ],
)
def test_bf16_is_taken_where_the_hardware_multiplies_it(
    monkeypatch: pytest.MonkeyPatch, asked: str, device: str, flags: set[str], found: str
) -> None:
    monkeypatch.setattr(processor, "_flags", lambda: flags)
    assert resolve_precision(asked, device) == found  # type: ignore[arg-type]
