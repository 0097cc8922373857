"""How far records are off: the size pattern, and the matrices that follow from it.

`d = true - recorded`. One pattern serves both directions: something left or entered the bin after it was
recorded (recorded -> true, `true = recorded + d`), or the record itself was mistaken (true -> recorded,
`recorded = true - d`). Matrices are over classes 0..K ("K or more" last); records stay unclipped, and every
record of K + 2 and above behaves alike, because one or two pieces off it still leaves the top class.

Assumptions: an error of three or more pieces ("further") is equally likely to end in each class that far away;
inside the top class quantities fall off geometrically, continuing from class K - 1. The default pattern is an
assumption without a public source; it is replaced as recounts come in.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

SIZE_STEPS = (-1, 1, -2, 2)
# shares of d = -1, +1, -2, +2 and of everything further off
DEFAULT_SIZES = (0.40, 0.25, 0.12, 0.08, 0.15)
_TAIL_LENGTH = 200


def size_index(difference: ArrayLike) -> NDArray[np.intp]:
    """Place of each difference `true - recorded` (n,) in the size pattern: 0..3 as SIZE_STEPS, 4 for further off."""
    difference = np.asarray(difference)
    index = np.full(difference.shape, len(SIZE_STEPS), dtype=np.intp)
    for place, step in enumerate(SIZE_STEPS):
        index[difference == step] = place
    return index


def record_rows(expected_qty: ArrayLike, top_class: int) -> NDArray[np.intp]:
    """Row (n,) of each unclipped record in a record table with K + 3 rows. Raises ValueError for negatives."""
    expected = np.asarray(expected_qty)
    if expected.size and expected.min() < 0:
        raise ValueError(f"expected_qty must be 0 or more, found {expected.min()}")
    return np.minimum(expected, top_class + 2).astype(np.intp)


def recorded_to_true(error_rate: float, sizes: ArrayLike, class_shares: ArrayLike) -> Floats:
    """P(true class | record), shape (K + 3, K + 1), when stock moved after it was recorded.

    (1 - error_rate) at the record itself, error_rate times the size pattern around it, restricted to
    quantities of 0 or more. `class_shares` (K + 1,) only shapes the top class.
    """
    quantities = _quantity_shares(class_shares)
    kernel = _error_kernel(sizes, quantities, len(np.asarray(class_shares)) - 1, sign=1)
    top = len(np.asarray(class_shares)) - 1
    return _fold(_mix_with_right(kernel, error_rate)[: top + 3], top)


def true_to_recorded(error_rate: float, sizes: ArrayLike, class_shares: ArrayLike) -> Floats:
    """P(true class | record), shape (K + 3, K + 1), when the record was mistaken when written.

    Bayes: proportional to share(true) * P(record | true), with the mirrored size pattern.
    """
    top = len(np.asarray(class_shares)) - 1
    quantities = _quantity_shares(class_shares)
    chance = _mix_with_right(_error_kernel(sizes, quantities, top, sign=-1), error_rate)
    joint = _fold((quantities[:, None] * chance).T[: top + 3], top)
    return joint / joint.sum(axis=1, keepdims=True)


def noise_matrix(noise_rate: float, sizes: ArrayLike, class_shares: ArrayLike) -> Floats:
    """N[y, r] = P(recorded class r | true class y), shape (K + 1, K + 1), of labels wrong at `noise_rate`.

    The label noise of a network trained on records (Natarajan et al. 2013, Patrini et al. 2017: the transition
    matrix), with the truth -> record direction of the size pattern.
    """
    top = len(np.asarray(class_shares)) - 1
    quantities = _quantity_shares(class_shares)
    chance = _mix_with_right(_error_kernel(sizes, quantities, top, sign=-1), noise_rate)
    by_class = _fold((quantities[:, None] * _fold(chance, top)).T, top).T
    return by_class / by_class.sum(axis=1, keepdims=True)


def _quantity_shares(class_shares: ArrayLike) -> Floats:
    """Shares of the exact quantities 0..K+200: the top class continued geometrically from class K - 1."""
    shares = np.asarray(class_shares, dtype=np.float64)
    if shares.ndim != 1 or shares.size < 2 or not np.all(shares > 0):
        raise ValueError("class shares must be positive, one for each class")
    shares = shares / shares.sum()
    ratio = np.clip(shares[-1] / (shares[-1] + shares[-2]), 0.05, 0.95)
    tail = ratio ** np.arange(_TAIL_LENGTH)
    return np.concatenate([shares[:-1], shares[-1] * tail / tail.sum()])


def _error_kernel(sizes: ArrayLike, quantities: Floats, top: int, sign: int) -> Floats:
    """P(where an error ends | exact quantity where it starts), square over the exact quantities, zero diagonal
    below the top class."""
    pattern = np.asarray(sizes, dtype=np.float64)
    if pattern.shape != (len(SIZE_STEPS) + 1,) or np.any(pattern < 0) or not np.isclose(pattern.sum(), 1):
        raise ValueError("a size pattern is five shares that sum to 1")
    start = np.arange(len(quantities))
    kernel = np.zeros((len(start), len(start)))
    for step, share in zip(SIZE_STEPS, pattern[:-1], strict=True):
        end = start + sign * step
        inside = (end >= 0) & (end < len(start))
        kernel[start[inside], end[inside]] += share
    # further off: each class with a quantity three or more away is equally likely; the top class always has one
    far_classes = np.abs(start[:, None] - np.arange(top + 1)[None, :]) >= 3
    far_classes[:, top] = True
    far = far_classes / far_classes.sum(axis=1, keepdims=True) * pattern[-1]
    kernel[:, :top] += far[:, :top]
    in_top = quantities[top:] / quantities[top:].sum()
    kernel[:, top:] += far[:, top, None] * in_top[None, :]
    return kernel / kernel.sum(axis=1, keepdims=True)


def _mix_with_right(kernel: Floats, error_rate: float) -> Floats:
    if not 0 <= error_rate < 1:
        raise ValueError(f"an error rate lies in [0, 1), found {error_rate}")
    return (1 - error_rate) * np.eye(len(kernel)) + error_rate * kernel


def _fold(columns: Floats, top: int) -> Floats:
    """Sum the columns of exact quantities into classes 0..K."""
    return np.column_stack([columns[:, :top], columns[:, top:].sum(axis=1)])
