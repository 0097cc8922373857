"""Fetch, score and stage: the streaming first pass, shard by shard, resumable.

Every shard ends as one staged file. A shard that is staged already is taken from there, and only its rows without a
score are tried again; so the same command after a crash loses at most the shards that were under way.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.platform.bundles import ScorerPlan
from jobs.platform.parquet import DamagedParquet, read_table, write_table
from jobs.platform.reports import read_reports, report_table
from jobs.platform.uris import join
from jobs.stages.images import FetchPlan, fetch_rows
from jobs.stages.resources import Resources
from jobs.stages.score import SCORED_SCHEMA, score_shards, shard_table
from jobs.stages.worklist import Shard, shards_in
from schemas.manifest import MANIFEST_SCHEMA
from schemas.results import ImageStatus

logger = logging.getLogger(__name__)

STAGED_SCHEMA = pa.schema([field for field in SCORED_SCHEMA if field.name not in ("shard", "fresh")])
SCORED = ImageStatus.SCORED
MAX_FINDINGS = 200
"""Kinds of failure by status that one shard reports, and that the driver keeps."""


@dataclass(frozen=True)
class StagedShard:
    """What the driver learns of a staged shard."""

    num_rows: int
    num_fresh: int
    """Images scored in this try of the run."""
    statuses: dict[str, int]
    findings: Counter
    """(status, error, where the images lie) -> how many; see trim_findings."""


def trim_findings(findings: Counter) -> Counter:
    """At most MAX_FINDINGS kinds for each status. Where there are more, photos lie in folders of their own: the folder
    says nothing then and is left empty, for good. Should there be more errors still, the rarest go."""
    kept: Counter = Counter()
    for status in {status for status, _, _ in findings}:
        kinds = Counter({kind: count for kind, count in findings.items() if kind[0] == status})
        if len(kinds) > MAX_FINDINGS or any(not folder for _, _, folder in kinds):
            errors: Counter = Counter()
            for (_, error, _), count in kinds.items():
                errors[status, error, ""] += count
            kinds = errors
        kept.update(dict(kinds.most_common(MAX_FINDINGS)))
    return kept


def staged_uri(folder_uri: str, shard: int) -> str:
    return join(folder_uri, f"{shard:07d}.parquet")


def stage_shards(
    shards: list[Shard],
    folder_uri: str,
    plan: FetchPlan,
    *,
    scorer: ScorerPlan,
    resources: Resources,
) -> Iterator[StagedShard]:
    """Runs the pass; yields each shard once it is staged, in the order of completion."""
    scored = score_shards(
        shards,
        _fetch_or_resume,
        {"folder_uri": folder_uri, "plan": plan},
        image_size=plan.preprocessing.image_size,
        scorer=scorer,
        resources=resources,
    )
    staged = scored.map_batches(
        _stage,  # type: ignore[arg-type]
        fn_kwargs={"folder_uri": folder_uri},
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=resources.small_task_cpus,
    )
    yield from read_reports(staged)


def _fetch_or_resume(items: pa.Table, folder_uri: str, plan: FetchPlan) -> Iterator[pa.Table]:
    for shard in shards_in(items):
        staged = _read_staged(staged_uri(folder_uri, shard.index))
        if staged is None:
            rows = fetch_rows(shard.read(), plan)
            yield shard_table(rows, shard.index, fresh=True)
            continue
        again = pc.not_equal(staged["status"], SCORED)
        if not pc.any(again).as_py():
            yield shard_table(staged, shard.index, fresh=False)
            continue
        retried = fetch_rows(staged.filter(again).select(MANIFEST_SCHEMA.names), plan)
        # the shard's own order again: rows that were scored, rows tried now
        order = np.argsort(np.concatenate([np.flatnonzero(~again.to_numpy()), np.flatnonzero(again.to_numpy())]))
        both = pa.concat_tables(
            [
                shard_table(staged.filter(pc.invert(again)), shard.index, fresh=False),
                shard_table(retried, shard.index, fresh=True),
            ]
        )
        yield both.take(pa.array(order))


def _read_staged(uri: str) -> pa.Table | None:
    """What an earlier try staged, if it did. A power cut can leave a file of any length under its final name."""
    try:
        return read_table(uri)
    except FileNotFoundError:
        return None
    except DamagedParquet as error:
        logger.warning("%s; its shard is scored again", error)
        return None


def _stage(rows: pa.Table, folder_uri: str) -> pa.Table:
    shards = pc.unique(rows["shard"]).to_pylist()
    assert len(shards) == 1, f"a block holds one shard, found {shards}"
    if pc.any(rows["fresh"]).as_py():
        write_table(staged_uri(folder_uri, shards[0]), rows.select(STAGED_SCHEMA.names))
    statuses = Counter(rows["status"].to_pylist())
    failed = rows.filter(pc.not_equal(rows["status"], SCORED))
    findings: Counter = Counter(
        (status, error or "", uri.rsplit("/", 1)[0])
        for status, error, uri in zip(
            *(failed[name].to_pylist() for name in ("status", "error", "image_uri")), strict=True
        )
    )
    report = StagedShard(
        num_rows=rows.num_rows,
        num_fresh=pc.sum(pc.and_(rows["fresh"], pc.equal(rows["status"], SCORED))).as_py(),
        statuses=dict(statuses),
        findings=trim_findings(findings),
    )
    return report_table(report)
