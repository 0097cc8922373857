"""Which checked bins train, which choose the epoch, and which judge."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.config.train import TrainConfig
from jobs.training.labelled_bins import LabelledBins
from model.micro_batches import TrainingSet
from model.splitting import SPLITS, find_asked_again, id_hashes, split_groups
from model.targets import classes_of
from schemas.errors import InputError

logger = logging.getLogger(__name__)

FAR_OFF = 0.1
"""Shares of the bins that differ from what was asked by more are worth a warning."""
LEAST_BINS = 10
"""Of selection and test: with fewer than nine, a set of counts that holds the true one in 90 % of the bins is always all
counts, and no figure means anything."""


def assign_splits(bins: pa.Table, config: TrainConfig) -> pa.Table:
    """`bins` with a column `split`. Raises InputError where a split is too small or a class has no examples."""
    groups = np.array(bins["group"].to_pylist())
    splits = split_groups(
        groups, seed=config.split_seed, selection_share=config.selection_share, test_share=config.test_share
    )
    labels = classes_of(bins["expected_qty"].to_numpy(), config.top_class)
    num_train = int((splits == "train").sum())
    present = f"{bins.num_rows} in all, {max(Counter(groups.tolist()).values())} of them in the largest group"
    remedy = "set finer groups, or draw other splits by --split-seed"
    if num_train < config.batch_size:
        raise InputError(
            f"manifest: expected at least {config.batch_size} bins to train on (--batch-size), found {num_train} "
            f"({present}); add bins, lower --batch-size, {remedy}"
        )
    for split in ("selection", "test"):
        if (found := int((splits == split).sum())) < LEAST_BINS:
            raise InputError(
                f"manifest: expected at least {LEAST_BINS} bins for {split}, found {found} ({present}); add bins, raise "
                f"--{split}-share, {remedy}"
            )
    histogram = np.bincount(labels[splits == "train"], minlength=config.num_classes)
    empty = [str(label) for label in np.flatnonzero(histogram == 0)]
    if empty:
        raise InputError(
            f"manifest: expected_qty: expected examples of every class 0..{config.top_class} among the training bins, "
            f"found none of {', '.join(empty)} (bins per class: {histogram.tolist()}); add such bins"
            + ("" if empty[0] == "0" else f", or lower --top-class to {max(1, int(empty[0]) - 1)}")
        )
    asked = {"selection": config.selection_share, "test": config.test_share}
    asked["train"] = 1 - sum(asked.values())
    got = {split: float((splits == split).mean()) for split in SPLITS}
    if max(abs(got[split] - asked[split]) for split in SPLITS) > FAR_OFF:
        logger.warning(
            "groups stay together, and with %d of them the splits are not as asked: %s; add bins of other groups, or %s",
            len(set(groups.tolist())),
            ", ".join(f"{split} {got[split]:.0%} instead of {asked[split]:.0%}" for split in SPLITS),
            remedy,
        )
    for split in SPLITS:
        inside = splits == split
        logger.info(
            "%s: %d bins in %d groups, per class %s",
            split,
            inside.sum(),
            len(set(groups[inside])),
            np.bincount(labels[inside], minlength=config.num_classes).tolist(),
        )
    return bins.append_column("split", pa.array(splits, pa.string()))


def split_bins(bins: LabelledBins, config: TrainConfig, seen: pa.Table) -> LabelledBins:
    """Checked bins with a column `split`; those whose photo stands in an earlier split too are left out, be it of these
    bins or of those that the loaded weights have `seen` (image_sha256, split). Raises InputError as `assign_splits`
    does, and where too few bins or groups are left."""
    table = assign_splits(bins.table, config)
    splits, photos = (
        np.array(table[name].to_pylist() + seen[name].to_pylist(), str) for name in ("split", "image_sha256")
    )
    again = find_asked_again(splits, photos)[: table.num_rows]
    if not again.any():
        return replace(bins, table=table)
    logger.warning(
        "%d bins of selection and test are left out: their photo stands in another split too, or the loaded weights have "
        "learned from it",
        again.sum(),
    )
    table = table.filter(pa.array(~again))
    for split in ("selection", "test"):
        left = table.filter(pc.equal(table["split"], split))
        num_groups = len(set(left["group"].to_pylist()))
        if num_groups < 2 or left.num_rows < LEAST_BINS:
            raise InputError(
                f"manifest: expected at least 2 groups and {LEAST_BINS} bins with photos of their own for {split}, found "
                f"{num_groups} and {left.num_rows}: {again.sum()} bins show a photo that other bins show too (jobs.explore "
                "lists them) or that the loaded weights have learned from; give bins their own photos, or other --weights"
            )
    return replace(bins, table=table, left_out={**bins.left_out, "photo_of_another_split": int(again.sum())})


def training_set(bins: pa.Table) -> TrainingSet:
    """The arrays of a table with bin_id, expected_qty, num_skus and split."""
    return TrainingSet(
        hashes=id_hashes(bins["bin_id"].to_pylist()),
        expected_qty=bins["expected_qty"].to_numpy(),
        num_skus=bins["num_skus"].to_numpy(),
        splits=np.array(bins["split"].to_pylist()),
    )
