from __future__ import annotations

import numpy as np
import pytest

from model.targets import classes_of, count_rows, count_targets, quantity_targets


def test_targets_sum_to_one_and_peak_at_the_record() -> None:
    targets = count_targets(6, "ordinal")
    assert targets.shape == (16, 7)
    assert np.allclose(targets.sum(axis=1), 1)
    assert targets.argmax(axis=1).tolist() == classes_of(np.arange(16), 6).tolist()
    assert np.allclose(quantity_targets().sum(axis=1), 1)


@pytest.mark.parametrize("top_class", [6, 14, 20])
def test_the_top_class_is_surer_the_further_the_record_lies_above_it(top_class: int) -> None:
    rows = count_rows(np.arange(top_class, top_class + 30), top_class)
    top = count_targets(top_class, "ordinal")[rows, top_class]
    assert (np.diff(top) > 0)[:4].all()
    assert top[0] < 0.95
    assert top[4:].min() > 0.99


def test_class_targets_are_one_hot() -> None:
    targets = count_targets(6, "classes")
    assert set(np.unique(targets)) == {0.0, 1.0}
    assert targets.argmax(axis=1).tolist() == classes_of(np.arange(16), 6).tolist()


@pytest.mark.parametrize("top_class", [3, 15, 20])
def test_every_record_is_taught_its_own_class(top_class: int) -> None:
    records = np.arange(40)
    taught = count_targets(top_class, "classes")[count_rows(records, top_class)]
    assert taught.argmax(axis=1).tolist() == classes_of(records, top_class).tolist()
