"""What a run believes and knows of earlier counts, as it was when the run began."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pandas as pd
from numpy.typing import ArrayLike

from jobs.config.audit import AuditConfig
from jobs.counting.belief import Belief, learn_belief, true_shares
from jobs.counting.history import History, read_history
from jobs.counting.last_counts import freeze_last_counts
from jobs.platform.provenance import provenance
from jobs.platform.run_record import freeze_run
from jobs.platform.uris import absolute
from jobs.stages.tonight import Tonight
from schemas.bundle import BundleInfo


def freeze_knowledge(tonight: Tonight) -> tuple[dict[str, Any], pd.DataFrame]:
    """The run's record with its belief, and the last counts of bins, as they were known when the run began: in this try or
    in an earlier one."""
    history = read_history(tonight.output_uri, tonight.audit_date)
    shares = true_shares(tonight.manifest.class_histogram(tonight.bundle.top_class))
    belief = _believe(tonight.config, history, tonight.bundle, shares)
    frozen = freeze_run(tonight.run_uri, _facts(tonight, belief))
    return frozen, freeze_last_counts(tonight.run_uri, history.last_counts)


def _believe(config: AuditConfig, history: History, bundle: BundleInfo, class_shares: ArrayLike) -> Belief:
    belief = learn_belief(history, bundle, class_shares)
    return belief if config.recount_budget > 0 and config.random_share > 0 else belief.without_claims()


def _facts(tonight: Tonight, belief: Belief) -> dict[str, object]:
    return {
        "run_id": tonight.run_id,
        "audit_date": tonight.audit_date,
        "config": tonight.config.model_dump(mode="json"),
        "manifest": {
            "uri": tonight.manifest.uri,
            "fingerprint": tonight.manifest.fingerprint,
            "num_bins": tonight.manifest.num_rows,
        },
        "bundle": {
            "uri": absolute(tonight.config.bundle_uri),
            "bundle_id": tonight.bundle.bundle_id,
            "weights_sha256": tonight.bundle.weights_sha256,
        },
        "allowed_roots": sorted(tonight.allowed_roots),
        "device": tonight.resources.device,
        "batch_size": tonight.resources.batch_size,
        "precision": tonight.precision,
        "replaces": tonight.replaces,
        "belief": belief.to_dict(),
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        **provenance(),
    }
