"""Predictions for labelled bins: a streaming pass over the manifest with the audit's own fetch and score stages."""

from __future__ import annotations

import heapq
import logging
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.config.evaluate import Split
from jobs.platform.bundles import ScorerPlan
from jobs.platform.line_timer import LineTimer
from jobs.stages.images import FETCHED_SCHEMA, FetchPlan, explain_poor, fetch_rows
from jobs.stages.reconcile import probability_matrix
from jobs.stages.resources import Resources
from jobs.stages.score import score_shards, shard_table
from jobs.stages.worklist import Shard, shards_in
from schemas.bundle import BundleInfo
from schemas.manifest import stock_moved
from schemas.results import ImageStatus, Reason

logger = logging.getLogger(__name__)

NUM_WORST = 24
MAX_EXAMPLES = 20
"""So many photos without a score are named; all are counted."""
SCORED = ImageStatus.SCORED


@dataclass(frozen=True)
class BinError:
    """One bin whose count differs from its record."""

    bin_id: str
    image_uri: str
    expected_qty: int
    camera_qty: int
    p_camera: float
    p_expected: float
    names: list[str]


@dataclass
class Predictions:
    """What the driver holds of all evaluated bins: n rows sorted by bin_id, a few dozen bytes each."""

    bin_ids: np.ndarray
    groups: np.ndarray
    """The manifest's group; a bin without one is its own."""
    expected_qty: np.ndarray
    probabilities: np.ndarray
    """(n, K + 1) float32, calibrated."""
    statuses: Counter[str]
    """Status of every photo that was fetched and not left out."""
    unscored: list[dict[str, str]]
    """The first MAX_EXAMPLES photos without a score by bin_id: bin_id, image_uri, status, error."""
    num_left_out: int
    """Bins left out by --split."""
    num_moved: int
    """Of the others, those whose stock has moved since the photo."""
    num_learned_from: int
    """Evaluated bins whose photo training learned from (only with `--split all`)."""
    worst: list[BinError]

    def __len__(self) -> int:
        return len(self.bin_ids)


@dataclass
class _Asked:
    """Photos that were asked for, block by block and in any order; the fields are those of Predictions."""

    statuses: Counter[str] = field(default_factory=Counter)
    unscored: list[dict[str, str]] = field(default_factory=list)
    num_moved: int = 0

    def add(self, rows: pa.Table) -> pa.Table:
        """Returns the rows whose stock has not moved."""
        kept = rows.filter(pc.invert(stock_moved(rows)))
        self.num_moved += rows.num_rows - kept.num_rows
        self.statuses.update(kept["status"].to_pylist())
        failed = kept.filter(pc.not_equal(kept["status"], SCORED)).select(["bin_id", "image_uri", "status", "error"])
        self._name(failed.to_pylist())
        return kept

    def merge(self, other: _Asked) -> None:
        """Adds what was asked of other bins."""
        self.num_moved += other.num_moved
        self.statuses.update(other.statuses)
        self._name(other.unscored)

    def _name(self, failed: list[dict[str, str]]) -> None:
        self.unscored = heapq.nsmallest(MAX_EXAMPLES, self.unscored + failed, key=lambda row: row["bin_id"])


@dataclass
class _Tally:
    """The parts of Predictions as they come in, block by block and in any order."""

    asked: _Asked = field(default_factory=_Asked)
    untold: _Asked = field(default_factory=_Asked)
    """The photos without a score whose bin is a known one, unless --split keeps all: what they are is told at the end."""
    num_known: int = 0
    """Readable photos of known bins."""
    num_known_same: int = 0
    """Of those, the ones that `FetchPlan.training_photos` names."""
    tables: list[pa.Table] = field(default_factory=list)
    num_left_out: int = 0
    num_learned_from: int = 0
    worst: list[BinError] = field(default_factory=list)
    num_done: int = 0


def predict_bins(
    shards: list[Shard],
    plan: FetchPlan,
    *,
    split: Split,
    known_bins: frozenset[str],
    info: BundleInfo,
    scorer: ScorerPlan,
    resources: Resources,
) -> Predictions:
    """Scores the photos of all shards. `plan.training_photos` names the photos that `split` is about: `unseen` leaves
    them out, `test` keeps only them, `all` keeps everything and counts them. A photo that can't be scored can't be told by
    its content either: it is one of them if its bin is one of `known_bins` and most other photos of those bins are. In
    another night's manifest they are not, and its failures count. Bins whose stock has moved since the photo are in none
    of them: what their record says is not what the photo shows."""
    scored = score_shards(
        shards,
        _fetch,
        {"plan": plan, "split": split},
        image_size=info.preprocessing.image_size,
        scorer=scorer,
        resources=resources,
    )
    tally = _Tally()
    num_bins = sum(shard.num_rows for shard in shards)
    started, timer = time.monotonic(), LineTimer(10.0)
    for rows in scored.iter_batches(batch_size=None, batch_format="pyarrow"):
        _add(tally, rows, split, known_bins, info)
        if timer.is_due() or tally.num_done == num_bins:
            rate = tally.num_done / max(1e-9, time.monotonic() - started)
            logger.info("%d of %d bins, %.1f a second", tally.num_done, num_bins, rate)
    _settle_untold(tally, split)
    return _predictions(tally, info)


def compare_counts(found: Predictions, reference: Predictions) -> dict[str, Any]:
    """`share` of the bins with a score in both whose most probable count is the same (0 of none), and their `num_bins`."""
    _, ours, theirs = np.intersect1d(found.bin_ids, reference.bin_ids, assume_unique=True, return_indices=True)
    same = found.probabilities[ours].argmax(1) == reference.probabilities[theirs].argmax(1)
    return {"share": float(same.sum() / max(1, len(same))), "num_bins": len(same)}


def _fetch(items: pa.Table, plan: FetchPlan, split: Split) -> Iterator[pa.Table]:
    """Fetched shards as score_shards takes them; a photo that is left out, or tells nothing, loses its pixels, so it is not
    scored."""
    for shard in shards_in(items):
        rows = fetch_rows(shard.read(), plan)
        # an audit doesn't assess it
        poor = pa.array([explain_poor(contrast) for contrast in rows["contrast"].to_pylist()], pa.string())
        is_poor = pc.is_valid(poor)
        meant = pc.and_(_kept(rows, split), pc.invert(pc.or_(stock_moved(rows), is_poor)))
        for name, values in (
            ("status", pc.if_else(is_poor, Reason.POOR_PHOTO, rows["status"])),
            ("error", pc.coalesce(poor, rows["error"])),
        ):
            rows = rows.set_column(rows.schema.get_field_index(name), FETCHED_SCHEMA.field(name), values)
        pixels = pc.if_else(meant, rows["pixels"], pa.scalar(None, pa.binary()))
        rows = rows.set_column(rows.schema.get_field_index("pixels"), FETCHED_SCHEMA.field("pixels"), pixels)
        yield shard_table(rows, shard.index, fresh=True)


def _kept(rows: pa.Table, split: Split) -> pa.ChunkedArray | pa.Array:
    if split == "all":
        return pa.repeat(pa.scalar(True), rows.num_rows)
    known = rows["training_photo"]
    return known if split == "test" else pc.invert(known)


def _add(tally: _Tally, rows: pa.Table, split: Split, known_bins: frozenset[str], info: BundleInfo) -> None:
    tally.num_done += rows.num_rows
    if split != "all":
        rows = _without_untold(tally, rows, known_bins)
    meant = rows.filter(_kept(rows, split))
    tally.num_left_out += rows.num_rows - meant.num_rows
    kept = tally.asked.add(meant)
    scored = kept.filter(pc.equal(kept["status"], SCORED))
    tally.num_learned_from += pc.sum(scored["training_photo"]).as_py() or 0 if split == "all" else 0
    tally.tables.append(scored.select(["bin_id", "group", "expected_qty", "probabilities"]))
    tally.worst = heapq.nsmallest(
        NUM_WORST, tally.worst + _errors(scored, info.top_class), key=lambda error: (error.p_expected, error.bin_id)
    )


def _without_untold(tally: _Tally, rows: pa.Table, known_bins: frozenset[str]) -> pa.Table:
    """`rows` without the photos of known bins that have no score. Those of other bins are not photos that training has
    read."""
    known = pa.array([bin_id in known_bins for bin_id in rows["bin_id"].to_pylist()], pa.bool_())
    failed = pc.not_equal(rows["status"], SCORED)
    of_known = rows.filter(pc.and_(known, pc.invert(failed)))
    tally.num_known += of_known.num_rows
    tally.num_known_same += pc.sum(of_known["training_photo"]).as_py() or 0
    aside = pc.and_(known, failed)
    tally.untold.add(rows.filter(aside))
    return rows.filter(pc.invert(aside))


def _settle_untold(tally: _Tally, split: Split) -> None:
    """Where the other photos of known bins don't say what these are, they count as asked for: better a failure too many
    than one that is hidden."""
    lead = 2 * tally.num_known_same - tally.num_known
    left_out = lead < 0 if split == "test" else lead > 0
    if left_out:
        tally.num_left_out += tally.untold.statuses.total() + tally.untold.num_moved
    else:
        tally.asked.merge(tally.untold)


def _errors(scored: pa.Table, top_class: int) -> list[BinError]:
    """The NUM_WORST bins of a block whose record the camera finds least probable, of those it counted otherwise."""
    if not scored.num_rows:
        return []
    probabilities = probability_matrix(scored["probabilities"], top_class)
    labels = np.minimum(scored["expected_qty"].to_numpy(), top_class)
    p_expected = probabilities[np.arange(len(labels)), labels]
    camera = probabilities.argmax(axis=1)
    wrong = np.flatnonzero(camera != labels)
    places = wrong[np.argsort(p_expected[wrong], kind="stable")][:NUM_WORST]
    return [
        BinError(
            bin_id=row["bin_id"],
            image_uri=row["image_uri"],
            expected_qty=row["expected_qty"],
            camera_qty=int(camera[place]),
            p_camera=float(probabilities[place, camera[place]]),
            p_expected=float(p_expected[place]),
            names=[name for line in row["skus"] if (name := line["name"] or line["sku"])],
        )
        for place, row in zip(places, scored.take(pa.array(places)).to_pylist(), strict=True)
    ]


def _predictions(tally: _Tally, info: BundleInfo) -> Predictions:
    rows = pa.concat_tables(tally.tables).sort_by("bin_id")
    groups = pc.coalesce(rows["group"], rows["bin_id"])
    return Predictions(
        bin_ids=rows["bin_id"].to_numpy(),
        groups=groups.to_numpy(),
        expected_qty=rows["expected_qty"].to_numpy(),
        probabilities=probability_matrix(rows["probabilities"], info.top_class),
        statuses=tally.asked.statuses,
        unscored=tally.asked.unscored,
        num_left_out=tally.num_left_out,
        num_moved=tally.asked.num_moved,
        num_learned_from=tally.num_learned_from,
        worst=tally.worst,
    )
