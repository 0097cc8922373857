"""How far records are off: the size pattern, and the tables that follow from it.

`d = true - recorded`. One pattern serves both directions: something left or entered the bin after it was
recorded (recorded -> true, `true = recorded + d`), or the record itself was mistaken (true -> recorded,
`recorded = true - d`). Tables are over classes 0..K ("K or more" last); records stay unclipped, and every record
of K + 2 and above behaves alike, because one or two pieces off it still leave the top class.

Assumptions: an error of three or more pieces ("further") ends in each class that far away equally likely, except
that of the stock that moved so far half has left an empty bin. The default pattern has no public source; it is
replaced as recounts come in.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

SIZE_STEPS = (-1, 1, -2, 2)
# shares of d = -1, +1, -2, +2 and of everything further off
DEFAULT_SIZES = (0.40, 0.25, 0.12, 0.08, 0.15)
EMPTIED_SHARE = 0.5
# a quantity in the top class held by this share of bins is half as easily reached as a common one
_RARE_SHARE = 0.005
# exact quantities carried beyond the top class
_TAIL_LENGTH = 40


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


def assume_top_shares(class_shares: ArrayLike) -> Floats:
    """Shares (3,) of K, K + 1 and more within the top class if quantities fall off geometrically from K - 1 on."""
    shares = np.asarray(class_shares, dtype=np.float64)
    ratio = _tail_ratio(shares)
    return np.array([1 - ratio, (1 - ratio) * ratio, ratio * ratio])


def recorded_to_true(error_rate: float, sizes: ArrayLike, class_shares: ArrayLike, top_shares: ArrayLike) -> Floats:
    """P(true class | record), shape (K + 3, K + 1), when stock moved after it was recorded.

    (1 - error_rate) at the record itself, error_rate times the size pattern around it, restricted to quantities
    of 0 or more. `class_shares` (K + 1,) and `top_shares` (3,) only shape the top class.
    """
    top, quantities = _exact_shares(class_shares, top_shares)
    return _fold(_with_right(_error_kernel(sizes, quantities, top, sign=1), error_rate)[: top + 3], top)


def true_to_recorded(error_rate: float, sizes: ArrayLike, class_shares: ArrayLike, top_shares: ArrayLike) -> Floats:
    """P(true class | record), shape (K + 3, K + 1), when the record was mistaken when written.

    Bayes: proportional to share(true) * P(record | true), with the mirrored size pattern.
    """
    top, quantities = _exact_shares(class_shares, top_shares)
    chance = _with_right(_error_kernel(sizes, quantities, top, sign=-1), error_rate)
    joint = _fold((quantities[:, None] * chance).T[: top + 3], top)
    return joint / joint.sum(axis=1, keepdims=True)


def _tail_ratio(class_shares: Floats) -> float:
    return float(np.clip(class_shares[-1] / (class_shares[-1] + class_shares[-2]), 0.05, 0.95))


def _exact_shares(class_shares: ArrayLike, top_shares: ArrayLike) -> tuple[int, Floats]:
    """K and the shares of the exact quantities 0..K + 39."""
    shares, first = np.asarray(class_shares, dtype=np.float64), np.asarray(top_shares, dtype=np.float64)
    if shares.ndim != 1 or shares.size < 2 or first.shape != (3,) or not (np.all(shares > 0) and np.all(first > 0)):
        raise ValueError("class shares (K + 1,) and top shares (3,) must be positive")
    tail = _tail_ratio(shares) ** np.arange(_TAIL_LENGTH - 2)
    within = np.concatenate([first[:2], first[2] * tail / tail.sum()]) / first.sum()
    exact = np.concatenate([shares[:-1], shares[-1] * within])
    return len(shares) - 1, exact / exact.sum()


def _error_kernel(sizes: ArrayLike, quantities: Floats, top: int, sign: int) -> Floats:
    """P(where an error ends | exact quantity where it starts), square over the exact quantities, zero diagonal."""
    pattern = np.asarray(sizes, dtype=np.float64)
    if pattern.shape != (len(SIZE_STEPS) + 1,) or np.any(pattern <= 0) or not np.isclose(pattern.sum(), 1):
        raise ValueError("a size pattern is five positive shares that sum to 1")
    start = np.arange(len(quantities))
    # where no bin ever holds more than K, an error cannot lead there
    exists = np.where(start < top, 1.0, quantities / (quantities + _RARE_SHARE))
    kernel = np.zeros((len(start), len(start)))
    for step, share in zip(SIZE_STEPS, pattern[:-1], strict=True):
        end = start + sign * step
        inside = (end >= 0) & (end < len(start))
        kernel[start[inside], end[inside]] = share * exists[end[inside]]
    # each class weighs the same, the top class by how much of it lies three or more away
    weight = np.where(start < top, 1.0, quantities / quantities[top:].sum())
    far = (np.abs(start[:, None] - start[None, :]) >= 3) * weight
    even = pattern[-1] * far / far.sum(axis=1, keepdims=True)
    if sign > 0:
        even[3:] *= 1 - EMPTIED_SHARE
        even[3:, 0] += EMPTIED_SHARE * pattern[-1]
    kernel += even
    return kernel / kernel.sum(axis=1, keepdims=True)


def _with_right(kernel: Floats, error_rate: float) -> Floats:
    if not 0 <= error_rate < 1:
        raise ValueError(f"an error rate lies in [0, 1), found {error_rate}")
    return (1 - error_rate) * np.eye(len(kernel)) + error_rate * kernel


def _fold(columns: Floats, top: int) -> Floats:
    """Sum the columns of exact quantities into classes 0..K."""
    return np.column_stack([columns[:, :top], columns[:, top:].sum(axis=1)])
