import hashlib
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from jobs.platform import storage
from jobs.platform.bundles import ScorerPlan
from jobs.platform.cluster import KEEP_MEMORY
from jobs.platform.parquet import read_table, write_table
from jobs.platform.reports import unpack
from jobs.stages import resources, staging, worklist
from jobs.stages.images import FetchPlan
from jobs.stages.progress import Progress
from jobs.stages.resources import GPU_BATCH, Card, Resources, fit_batch, resolve_precision
from jobs.stages.score import (
    GPU_FETCH_NICENESS,
    SCORED_SCHEMA,
    SHARDS_AT_ONCE,
    SHARING_SHARDS,
    ShardScorer,
    _step_back,
    score_shards,
    shard_table,
    with_probabilities,
)
from jobs.stages.staging import MAX_FINDINGS, StagedShard, trim_findings
from jobs.stages.worklist import Shard
from model import processor
from model.bundle_files import read_bundle_info
from model.inference import MixedNetwork
from model.network import build_network
from model.processor import Processor
from model.scoring import Precision, to_inputs
from schemas.bundle import BundleInfo, Calibration, Preprocessing
from schemas.errors import GateError, InputError
from tests.dump import manifest_table, photo, write_bundle

INFO = BundleInfo(
    bundle_id="0123456789ab",
    architecture="resnet18",
    top_class=1,
    classes=["0", "1+"],
    preprocessing=Preprocessing(image_size=32),
    calibration=Calibration(method="none", weight=[[1, 0], [0, 1]], bias=[0, 0]),
    prediction_set_threshold=0.9,
    num_calibration=500,
    record_outside_set_share=0.1,
    num_independent=500,
    label_histogram=[20, 80],
    activation_ranges={},
    weights_sha256="0" * 64,
    training_images_sha256="0" * 64,
)


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
    }
    for name, column in added.items():
        rows = rows.append_column(name, column)
    return shard_table(rows, 3, fresh=True)


def test_answers_go_to_the_rows_with_pixels_and_the_others_keep_theirs() -> None:
    rows = _shard([None, b"x", None, b"y"], [[1.0, 0.0], None, None, None])
    scored = with_probabilities(rows, np.array([[0.25, 0.75], [0.5, 0.5]], np.float32))
    assert scored.schema.equals(SCORED_SCHEMA)
    assert scored["probabilities"].to_pylist() == [[1.0, 0.0], [0.25, 0.75], None, [0.5, 0.5]]
    assert scored["bin_id"].to_pylist() == rows["bin_id"].to_pylist()
    in_two_pieces = pa.concat_tables([rows.slice(0, 1), rows.slice(1)])
    assert with_probabilities(in_two_pieces, np.array([[0.25, 0.75], [0.5, 0.5]], np.float32)).equals(scored)


@pytest.mark.parametrize(("precision", "advice"), [("fp16", "use --precision bf16 or fp32"), ("bf16", "another one")])
def test_an_answer_that_is_no_number_ends_the_run_with_its_bin(precision: str, advice: str) -> None:
    scorer = object.__new__(ShardScorer)
    answers = np.array([[0.5, 0.5], [np.nan, np.nan]], np.float32)
    scorer._refusal, scorer._precision, scorer._is_on_gpu = None, precision, False
    info = SimpleNamespace(preprocessing=Preprocessing(image_size=16))
    scorer._scorer = SimpleNamespace(info=info, score=lambda pixels: answers)  # type: ignore[assignment]
    rows = _shard([None, bytes(768), None, bytes(768)], [[1.0, 0.0], None, None, None])
    with pytest.raises(GateError, match=rf"bin {rows['bin_id'][3]}: .* not a number in {precision}.*{advice}"):
        scorer(rows)
    answers[1] = 0.5
    assert scorer(rows)["probabilities"].to_pylist() == [[1.0, 0.0], [0.5, 0.5], None, [0.5, 0.5]]


def test_a_bundle_that_changed_under_way_is_named_by_the_first_call_and_not_by_the_constructor(tmp_path: Path) -> None:
    uri = str(write_bundle(tmp_path / "bundle"))
    # on a CPU it would set this process's threads
    scorer = ShardScorer(ScorerPlan(uri, "another", "cuda", "fp32", batch_size=1, threads=1))
    with pytest.raises(InputError, match=f"{uri}: expected bundle another, with which the job began, found"):
        scorer(_shard([None], [None]))


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines whose torch has no GPU")
def test_a_gpu_that_torch_cannot_use_is_named_by_the_first_call(tmp_path: Path) -> None:
    uri = str(write_bundle(tmp_path / "bundle"))
    bundle_id = read_bundle_info(tmp_path / "bundle").bundle_id
    scorer = ShardScorer(ScorerPlan(uri, bundle_id, "cuda", "fp32", batch_size=1, threads=1))
    with pytest.raises(
        GateError, match=rf"the GPU of node {platform.node()}: .*NVIDIA driver.*run the same command again"
    ):
        scorer(_shard([None], [None]))


def test_memory_of_a_gpu_that_others_hold_is_said() -> None:
    scorer = ShardScorer.__new__(ShardScorer)  # without a bundle to load
    scorer._refusal, scorer._precision, scorer._is_on_gpu = None, "fp32", True

    refusals = ["CUDA out of memory. Tried to allocate 20 MiB\nmore", "cuDNN error: CUDNN_STATUS_ALLOC_FAILED"]

    def score(pixels: np.ndarray) -> np.ndarray:
        raise torch.OutOfMemoryError(refusals[0])

    info = SimpleNamespace(preprocessing=Preprocessing(image_size=16))
    scorer._scorer = SimpleNamespace(info=info, score=score)  # type: ignore[assignment]
    with pytest.raises(GateError, match=r"found: CUDA out of memory\. Tried to allocate 20 MiB; free it"):
        scorer(_shard([bytes(768)], [None]))
    refusals.reverse()
    with pytest.raises(GateError, match=r"found: cuDNN error: CUDNN_STATUS_ALLOC_FAILED; free it"):
        scorer(_shard([bytes(768)], [None]))
    scorer._is_on_gpu = False
    with pytest.raises(torch.OutOfMemoryError):
        scorer(_shard([bytes(768)], [None]))


@pytest.mark.parametrize("error", [GateError("b: can't be read"), RuntimeError("size mismatch for fc.weight")], ids=str)
def test_what_is_no_fault_of_the_gpu_is_not_laid_to_it(error: Exception) -> None:
    scorer = ShardScorer.__new__(ShardScorer)
    scorer._is_on_gpu = True
    with pytest.raises(type(error), match=f"^{error}$"), scorer._gpu_named():
        raise error


def test_shards_in_halves_of_the_cores_have_the_answers_of_one_on_all(tmp_path: Path) -> None:
    uri = str(write_bundle(tmp_path / "bundle"))
    plan = ScorerPlan(uri, read_bundle_info(tmp_path / "bundle").bundle_id, "cpu", "fp32", batch_size=8, threads=2)
    scorer, side = plan.load(), read_bundle_info(tmp_path / "bundle").preprocessing.image_size
    shards = np.random.default_rng(0).integers(0, 255, (2, 20, side, side, 3), dtype=np.uint8)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        whole = [scorer.score(pixels) for pixels in shards]
        with ThreadPoolExecutor(2, initializer=torch.set_num_threads, initargs=(1,)) as threads:
            halves = list(threads.map(scorer.score, shards))
    finally:
        torch.set_num_threads(before)
    assert all(np.array_equal(one, other) for one, other in zip(whole, halves, strict=True))


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_shards_at_once_have_the_answers_of_one_scorer_even_where_an_actor_dies_with_two_of_them(
    tmp_path: Path,
) -> None:
    uri, in_flight, died = str(write_bundle(tmp_path / "bundle")), tmp_path / "in-flight", tmp_path / "died"
    in_flight.mkdir()

    class Doomed(ScorerPlan):  # nested, so that it travels by value
        """Its calls say that they have begun, and before an actor has died they don't end."""

        def load(self) -> Any:
            scorer = super().load()

            def score(pixels: np.ndarray) -> np.ndarray:
                if not died.exists():
                    (in_flight / f"{os.getpid()}-{threading.get_ident()}").touch()
                while not died.exists():
                    time.sleep(0.05)
                return scorer.score(pixels)

            return SimpleNamespace(info=scorer.info, score=score)

    def fetch(items: pa.Table, tables: list[pa.Table]) -> Iterator[pa.Table]:
        for index in items["index"].to_pylist():
            yield tables[index]

    def kill() -> int:
        deadline = time.monotonic() + 240
        try:
            while len(calls := [path.name.partition("-")[0] for path in in_flight.iterdir()]) < SHARDS_AT_ONCE:
                assert time.monotonic() < deadline, f"expected {SHARDS_AT_ONCE} calls at once, found {len(calls)}"
                time.sleep(0.05)
            os.kill(int(calls[0]), signal.SIGKILL)
            return len(set(calls))
        finally:
            died.touch()

    plan = Doomed(uri, read_bundle_info(tmp_path / "bundle").bundle_id, "cpu", "fp32", batch_size=8, threads=2)
    pixels = np.random.default_rng(0).integers(0, 255, (SHARING_SHARDS, 3, 32, 32, 3), dtype=np.uint8)
    tables = [
        shard_table(
            _shard([photo.tobytes() for photo in photos], [None] * 3).drop_columns(["shard", "fresh"]),
            index,
            fresh=True,
        )
        for index, photos in enumerate(pixels)
    ]
    scored = score_shards(
        [Shard(index, "not read", 0, 3) for index in range(SHARING_SHARDS)],
        fetch,
        {"tables": tables},
        image_size=32,
        scorer=plan,
        resources=Resources("cpu", 1, 1.0, 0, 2, 2, 0.5, 0.1, 8, 1),
    )
    with ThreadPoolExecutor(1) as threads:
        killed = threads.submit(kill)
        blocks = list(scored.iter_batches(batch_size=None, batch_format="pyarrow"))
        assert killed.result() == 1, "both in one actor"
    found = {block["shard"].unique().to_pylist()[0]: block for block in blocks}
    assert (len(blocks), sorted(found)) == (SHARING_SHARDS, list(range(SHARING_SHARDS)))
    whole = ScorerPlan(uri, plan.bundle_id, "cpu", "fp32", batch_size=8, threads=2).load()
    for index, photos in enumerate(pixels):
        assert found[index]["shard"].to_pylist() == [index] * 3, "a block holds one shard"
        assert found[index]["probabilities"].to_pylist() == whole.score(photos).tolist()


@pytest.mark.parametrize(
    ("threads", "calls", "cores", "found"), [(16, 2, 16, 8), (16, 2, 2, 1), (3, 1, 8, 3), (4, 2, 3, 2), (1, 2, 4, 1)]
)
def test_calls_share_the_threads_of_a_scorer(
    threads: int, calls: int, cores: int, found: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    plan = ScorerPlan("b", "id", "cpu", "fp32", batch_size=32, threads=threads, calls=calls)
    assert plan.num_threads() == found


def test_fetches_beside_a_gpu_let_others_go_first() -> None:
    rows = pa.table({"x": [1, 2]})

    def niceness() -> int:
        assert list(_step_back(rows, lambda items, times: iter([items] * times), times=2)) == [rows, rows]
        return os.getpriority(os.PRIO_PROCESS, 0)

    own = os.getpriority(os.PRIO_PROCESS, 0)
    with ThreadPoolExecutor(1) as threads:  # niceness is a thread's own
        assert threads.submit(niceness).result() == max(own, GPU_FETCH_NICENESS)
    assert os.getpriority(os.PRIO_PROCESS, 0) == own


def _staged(num_rows: int, num_fresh: int, **statuses: int) -> StagedShard:
    return StagedShard(num_rows, num_fresh, statuses, Counter())


def test_rate_and_time_left_are_of_this_try_with_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    progress = Progress(num_bins=1000, max_unreadable_share=1, max_missing_share=1, _began=100.0)
    clock.now = 105.0
    progress.add(_staged(500, 0, scored=500))  # by an earlier try
    progress.add(_staged(20, 0, missing_image=20))
    assert progress.line() == "520 of 1,000 bins (52%), without a score: 20 missing_image"
    assert progress.images_per_second() is None
    clock.now = 120.0
    progress.add(_staged(100, 100, scored=100))
    clock.now = 125.0
    progress.add(_staged(20, 0, missing_image=20))
    assert (
        progress.line() == "640 of 1,000 bins (64%), 4.0 images/s, 1 min 30 s left, without a score: 40 missing_image"
    )
    assert progress.images_per_second() == pytest.approx(100 / 20)
    assert not progress.has_scored_all()
    whole = Progress(num_bins=10, max_unreadable_share=1, max_missing_share=1)
    whole.add(_staged(10, 9, scored=9, missing_image=1))
    assert whole.has_scored_all()


def test_of_a_shard_that_is_tried_again_only_the_rows_without_a_score_are_fresh(tmp_path: Path) -> None:
    storage.write_bytes(f"{tmp_path}/00001.jpg", photo(1, 1))
    scored = [True, False, True, False, True]
    added = {
        "status": ["scored" if known else "missing_image" for known in scored],
        "error": [None if known else "not found" for known in scored],
        "training_photo": [False] * 5,
        "contrast": [9.0 if known else None for known in scored],
        "probabilities": [[0.5, 0.5] if known else None for known in scored],
    }
    rows = manifest_table(str(tmp_path), [1] * 5).to_pydict() | added
    write_table(staging.staged_uri(str(tmp_path), 0), pa.Table.from_pydict(rows, schema=staging.STAGED_SCHEMA))
    plan = FetchPlan(Preprocessing(image_size=32), (str(tmp_path),), False, None)
    work = pa.table({"index": [0], "uri": ["not read"], "row_group": [0], "num_rows": [5]})
    (shard,) = staging._fetch_or_resume(work, str(tmp_path), plan)
    (report,) = staging._stage(with_probabilities(shard, np.array([[0.1, 0.9]], np.float32)), str(tmp_path))["report"]
    first = unpack(report.as_py())
    assert (first.num_fresh, first.statuses) == (1, {"scored": 4, "missing_image": 1})
    found = read_table(staging.staged_uri(str(tmp_path), 0))
    assert found["bin_id"].to_pylist() == rows["bin_id"]
    old, now = [0.5, 0.5], [pytest.approx(0.1), pytest.approx(0.9)]
    assert found["probabilities"].to_pylist() == [old, now, old, None, old]
    (again,) = staging._fetch_or_resume(work, str(tmp_path), plan)
    (report,) = staging._stage(again.select(SCORED_SCHEMA.names), str(tmp_path))["report"]
    second = unpack(report.as_py())
    assert second.num_fresh == 0


@pytest.mark.parametrize("given", [False, True])
def test_a_manifest_without_a_column_of_skus_gets_it_from_their_lines(tmp_path: Path, given: bool) -> None:
    source, copy = (str(tmp_path / name) for name in ("manifest.parquet", "worklist.parquet"))
    lines = [[("S1", 0), ("S2", 2), ("S2", 1)], [("S1", 1), ("S2", 2)], [("S1", 0)], []]
    skus = [[{"sku": sku, "name": None, "quantity": quantity} for sku, quantity in each] for each in lines]
    rows = manifest_table(str(tmp_path), [3, 3, 0, 0], skus=skus, num_skus=[1, 2, 0, 0], sku=["named", *[None] * 3])
    write_table(source, rows if given else rows.drop_columns(["sku"]))
    sha256 = hashlib.sha256(storage.read_bytes(source)).hexdigest()
    worklist._copy_file({"source": source, "sha256": sha256, "num_rows": 4, "target": copy, "rows": 256})
    assert read_table(copy)["sku"].to_pylist() == ["named" if given else "S2", None, None, None]


@pytest.mark.parametrize("left", [0, 100, -1])
def test_files_that_a_power_cut_left_cut_short_are_written_again(
    tmp_path: Path, left: int, caplog: pytest.LogCaptureFixture
) -> None:
    source, copy, staged = (
        str(tmp_path / name) for name in ("manifest.parquet", "worklist.parquet", "0000000.parquet")
    )
    write_table(source, manifest_table(str(tmp_path), [1] * 4))
    sha256 = hashlib.sha256(storage.read_bytes(source)).hexdigest()
    row = {"source": source, "sha256": sha256, "num_rows": 4, "target": copy, "rows": 256}
    plan = FetchPlan(Preprocessing(image_size=32), (str(tmp_path),), False, None)
    work = pa.table({"index": [0], "uri": [copy], "row_group": [0], "num_rows": [4]})

    def stage() -> int:
        worklist._copy_file(row)
        (shard,) = staging._fetch_or_resume(work, str(tmp_path), plan)
        staging._stage(shard.select(SCORED_SCHEMA.names), str(tmp_path))
        return read_table(staged).num_rows

    assert stage() == 4
    for uri in (copy, staged):
        storage.write_bytes(uri, storage.read_bytes(uri)[:left])
    assert stage() == 4
    assert f"{copy}: " in caplog.text
    assert f"{staged}: expected a Parquet file" in caplog.text
    write_table(copy, manifest_table(str(tmp_path), [1] * 3))
    assert stage() == read_table(copy).num_rows == 4
    storage.delete([source])
    assert stage() == 4, "a whole copy is kept"


def _failed_shard(index: int, *failures: tuple[str, str, int]) -> StagedShard:
    """Each failure in a folder of its own: status, error, how many."""
    folders = {
        (status, error, f"s3://b/{index}-{status}-{number}"): 1
        for status, error, count in failures
        for number in range(count)
    }
    statuses = Counter({"scored": 250 - len(folders)})
    statuses.update(status for status, _, _ in folders)
    return StagedShard(250, 0, dict(statuses), trim_findings(Counter(folders)))


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
        progress.add(StagedShard(10, 0, {"missing_image": 10}, Counter()))


@pytest.mark.parametrize(("capabilities", "found"), [([8.0], "bf16"), ([9.0, 7.5], "fp32"), ([7.0], "fp32")], ids=str)
def test_bf16_is_taken_on_cards_that_have_units_for_it(capabilities: list[float], found: str) -> None:
    cards = [Card(capability, None) for capability in capabilities]
    assert resolve_precision("auto", "cuda", cards, []) == found


def test_cards_are_asked_once_for_precision_and_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[Card]] = []
    monkeypatch.setattr(
        resources, "plan_resources", lambda: Resources("cuda", 1, 1.0, 1.0, 1, 4, 0.5, 0.1, GPU_BATCH, 1)
    )
    monkeypatch.setattr(resources, "_ask_nodes", lambda *_: asked.append([Card(8.0, 2**20)]) or asked[-1:])
    settled, precision = resources.settle_resources("auto", INFO)
    assert (settled.batch_size, precision, len(asked)) == (1, "bf16", 1)


def test_cards_that_cannot_be_asked_are_not_guessed_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "_ask_nodes", lambda *_: [[Card(8.0, None)], []])
    monkeypatch.setattr(
        resources, "plan_resources", lambda: Resources("cuda", 1, 1.0, 1.0, 1, 4, 0.5, 0.1, GPU_BATCH, 1)
    )
    with pytest.raises(InputError, match="--precision auto: expected nvidia-smi to name"):
        resources.settle_resources("auto", INFO)
    with pytest.raises(InputError, match="--precision auto: expected nvidia-smi to name"):
        resolve_precision("auto", "cuda", [], [])
    assert resolve_precision("bf16", "cuda", [], []) == "bf16"


def test_cards_are_asked_for_by_the_driver_s_own_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert resources.read_cards() == []
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho '7.5, 15360, [N/A]'\necho '9.0, [N/A], Disabled'\necho '8.0, 40960, Enabled'\n")
    tool.chmod(0o755)
    assert resources.read_cards() == [Card(7.5, 15 * 2**30), Card(9.0, None), Card(8.0, 5 * 2**30)]


GIB = 2**30


@pytest.mark.parametrize(
    ("memories", "precision", "image_size", "found"),
    [
        ([80 * GIB], "bf16", 224, 256),
        ([80 * GIB, 8 * GIB], "fp32", 224, 128),
        ([16 * GIB], "bf16", 1024, 16),
        ([4 * GIB], "fp32", 1024, 4),
        ([None, None], "bf16", 1024, 8),
        ([80 * GIB, None], "bf16", 1024, 8),
        ([2**20], "fp32", 1024, 1),
        ([], "bf16", 224, 256),
        ([], "fp32", 224, 128),
    ],
)
def test_a_gpu_s_batch_is_what_its_memory_holds(
    memories: list[int | None], precision: Precision, image_size: int, found: int
) -> None:
    cards = [Card(9.0, memory) for memory in memories]
    planned = Resources("cuda", 1, 1.0, 1.0, 1, 4, 0.5, 0.1, GPU_BATCH, 1)
    assert fit_batch(planned, precision, image_size, cards) == replace(planned, batch_size=found)


class LiveBytes(TorchDispatchMode):
    """The most that the tensors made in it hold at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.live.setdefault(storage._cdata, (StorageWeakRef(storage), storage.nbytes()))
        self.live = {key: entry for key, entry in self.live.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.live.values()))
        return made


@pytest.mark.parametrize("architecture", ["resnet18", "resnet50"])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_photo_takes_the_memory_that_batches_are_planned_with(architecture: str, precision: str) -> None:
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    # as on a GPU, where batches are planned
    network = MixedNetwork(build_network(architecture, 7).eval(), dtype)
    photos = torch.zeros((4, 112, 112, 3), dtype=torch.uint8)
    ones = torch.ones((1, 3, 1, 1))
    with torch.inference_mode(), LiveBytes() as seen:
        inputs = to_inputs(photos, ones, ones)
        (network(inputs) + network(inputs.flip(3))) / 2
    per_pixel = seen.peak / (4 * 112**2)
    assert per_pixel < resources.BYTES_PER_PIXEL[precision]
    if architecture == "resnet50":
        assert per_pixel > 0.8 * resources.BYTES_PER_PIXEL[precision]


FAULTS = """
import resource, threading

def compute():
    size = 80 << 20
    b"x" * size
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        b"x" * size
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

thread = threading.Thread(target=compute)
thread.start()
thread.join()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="says how glibc is to behave")
def test_a_network_s_process_keeps_the_memory_of_its_activations() -> None:
    command = [sys.executable, "-c", FAULTS]
    done = subprocess.run(command, env={**os.environ, **KEEP_MEMORY}, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1000, "five times 20,480 pages were needed"


def test_fp16_is_refused_on_a_cpu() -> None:
    with pytest.raises(InputError, match="--precision fp16: expected a GPU"):
        resolve_precision("fp16", "cpu", [], [])


@pytest.mark.parametrize(
    ("asked", "device", "vendor", "flags", "found"),
    [
        ("auto", "cpu", "AuthenticAMD", "avx2 avx512f", "fp32"),
        ("auto", "cpu", "AuthenticAMD", "avx512f avx512_bf16", "bf16"),
        ("auto", "cpu", "GenuineIntel", "avx512f avx512_bf16", "fp32"),
        ("auto", "cpu", "GenuineIntel", "avx512f avx512_bf16 amx_bf16", "bf16"),
        ("fp32", "cuda", "AuthenticAMD", "avx512_bf16", "fp32"),
    ],
)
def test_bf16_is_taken_where_the_hardware_gains_by_it(
    monkeypatch: pytest.MonkeyPatch, asked: str, device: str, vendor: str, flags: str, found: str
) -> None:
    monkeypatch.setattr(processor, "_first_processor", lambda: {"vendor_id": vendor, "flags": flags})
    assert resolve_precision(asked, device, [], [processor.read_processor()]) == found  # type: ignore[arg-type]


@pytest.mark.parametrize(("gains", "found"), [([True, True], "bf16"), ([True, False], "fp32")], ids=str)
def test_bf16_is_taken_where_every_node_that_scores_gains_by_it(gains: list[bool], found: str) -> None:
    processors = [Processor(gain, multiplies_int8=False) for gain in gains]
    assert resolve_precision("auto", "cpu", [], processors) == found


def test_int8_is_refused_where_one_node_that_scores_cannot_compute_it() -> None:
    with pytest.raises(InputError, match="expected processors with VNNI, found one without"):
        resolve_precision("int8", "cpu", [], [Processor(True, True), Processor(True, False)])


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_what_nodes_can_do_is_asked_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def process() -> int:
        return os.getpid()

    assert resources._ask_nodes(process, "CPU") == [os.getpid()]
    elsewhere = SimpleNamespace(get_node_id=lambda: "a head that scores nothing")
    monkeypatch.setattr(resources.ray, "get_runtime_context", lambda: elsewhere)
    (found,) = resources._ask_nodes(process, "CPU")
    assert found != os.getpid()
    assert resources._ask_nodes(process, "GPU") == []


@pytest.mark.parametrize("status", ["missing_image", "fetch_failed", "unreadable_image", "image_rejected"])
def test_every_kind_of_photo_without_a_score_counts_for_a_gate(status: str) -> None:
    progress = Progress(num_bins=100, max_unreadable_share=0.05, max_missing_share=0.05)
    progress.add(StagedShard(5, 0, {status: 5}, Counter()))
    with pytest.raises(GateError, match=f"6 of 100 images are .*{status}"):
        progress.add(StagedShard(1, 0, {status: 1}, Counter()))
