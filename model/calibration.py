"""Calibration on held-out bins: temperature, vector and matrix scaling, and the threshold of the 90 % set.

Temperature, vector and matrix scaling: Guo et al. 2017; one temperature with a bias per class: Alexandari et al. 2020; the
off-diagonal and bias penalty of matrix scaling (ODIR): Kull et al. 2019. Vector scaling is drawn towards temperature scaling
by the same kind of penalty. Which is used is decided by negative log likelihood on bins that the fit has not seen
(cross-fitting by group). The probabilities have training's class mix, which `model.posterior` divides by, and not that of
the held-out bins (`shift_of_mix`).
LAC sets: Sadinle, Lei and Wasserman 2019. numpy and scipy only.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from model.prediction_sets import lac_quantile
from schemas.bundle import Calibration, Method

METHODS: tuple[Method, ...] = get_args(Method)
NUM_FOLDS = 5
# Strength of the pull towards temperature scaling, in units of one bin's log likelihood per squared unit.
# At 1,000 held-out bins it moves a well determined parameter by less than its standard error.
VECTOR_PENALTY = 5.0
MATRIX_PENALTY = 50.0


@dataclass(frozen=True)
class FittedCalibration:
    """The chosen calibration and what is known about it."""

    calibration: Calibration
    prediction_set_threshold: float
    """LAC threshold t: the set is {k : p(k) >= 1 - t}."""
    record_outside_set_share: float
    """Share of bins whose record lies outside its 90 % set, each judged by a fit of the other folds."""
    held_out_probabilities: np.ndarray
    """(n, classes), each bin's from a fit that has not seen its fold."""
    num_calibration: int
    num_independent: int
    """`independent_bins` behind record_outside_set_share."""


def apply_calibration(logits: np.ndarray, calibration: Calibration) -> np.ndarray:
    """softmax(weight @ logits + bias), float64 (n, classes). Each row depends on nothing but its own logits."""
    weight = np.asarray(calibration.weight)
    # Not a matrix product: BLAS may sum in another order for another number of rows.
    scaled = (np.asarray(logits, np.float64)[:, None, :] * weight[None]).sum(axis=2)
    return softmax(scaled + np.asarray(calibration.bias), axis=1)


def negative_log_likelihood(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean of -log p(label), in nats, of probabilities (n, classes) and labels (n,); p at least 1e-12."""
    picked = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(picked, 1e-12)).mean())


def shift_of_mix(labels: np.ndarray, training_histogram: ArrayLike) -> np.ndarray:
    """log (share among `labels` (n,) / share in training) of each class, (classes,), drawn towards 0 as by one bin more:
    what is left of the difference, the biases that are fitted beside it would learn."""
    training = np.asarray(training_histogram, np.float64) + 1
    training /= training.sum()
    here = (np.bincount(labels, minlength=len(training)) + training) / (len(labels) + 1)
    return np.log(here / training)


def at_mix(probabilities: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Probabilities (n, classes) with another class mix than training's, by the `shift_of_mix` to it."""
    return softmax(np.log(np.maximum(probabilities, 1e-300)) + shift, axis=1)


def fit_calibration(logits: np.ndarray, labels: np.ndarray, method: Method, shift: np.ndarray | float) -> Calibration:
    """Fits one method to held-out logits (n, classes) and labels (n,) by penalised maximum likelihood, after the temperature,
    which is fitted alone: on real logits fitting both at once moves the NLL of other bins by less than .003 either way.

    `shift` (`shift_of_mix`) is added to the calibrated logits while fitting and left out of what is returned, whose
    probabilities have the class mix of training then.
    """
    num_classes = logits.shape[1]
    identity = np.eye(num_classes)
    if method == "none":
        return Calibration(method=method, weight=identity.tolist(), bias=[0.0] * num_classes)
    logits = np.asarray(logits, np.float64)
    scale = _minimise_temperature(logits, labels, shift)
    mask = {"temperature": np.zeros_like(identity), "vector": identity, "matrix": np.ones_like(identity)}[method]
    penalty = MATRIX_PENALTY if method == "matrix" else VECTOR_PENALTY
    onehot = identity[labels]
    # in units of calibrated logits, so that the penalty means the same for a confident and a timid network
    scaled = scale * logits

    def objective(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        change = parameters[: num_classes**2].reshape(num_classes, num_classes) * mask
        bias = parameters[num_classes**2 :]
        log_p = log_softmax(scaled @ (identity + change).T + bias + shift, axis=1)
        residual = np.exp(log_p) - onehot  # (n, classes)
        weighted = penalty * change + (VECTOR_PENALTY - penalty) * np.diag(np.diag(change))
        value = -(log_p * onehot).sum() + 0.5 * (weighted * change).sum() + 0.5 * (bias @ bias)
        gradient = (residual.T @ scaled + weighted) * mask
        return value, np.concatenate([gradient.ravel(), residual.sum(axis=0) + bias])

    start = np.zeros(num_classes**2 + num_classes)
    found = minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": 500})
    change = found.x[: num_classes**2].reshape(num_classes, num_classes) * mask
    return Calibration(
        method=method,
        weight=(scale * (identity + change)).tolist(),
        bias=found.x[num_classes**2 :].tolist(),
    )


def _minimise_temperature(logits: np.ndarray, labels: np.ndarray, shift: np.ndarray | float) -> float:
    """1 / T of temperature scaling, within [0.05, 20]."""
    rows = np.arange(len(labels))

    def objective(log_scale: np.ndarray) -> float:
        return float(-log_softmax(np.exp(log_scale[0]) * logits + shift, axis=1)[rows, labels].sum())

    found = minimize(objective, np.zeros(1), method="L-BFGS-B", bounds=[(np.log(0.05), np.log(20.0))])
    return float(np.exp(found.x[0]))


def calibrate(
    logits: np.ndarray, labels: np.ndarray, groups: np.ndarray, training_histogram: ArrayLike
) -> FittedCalibration:
    """Chooses the method by cross-fitted NLL over folds of whole groups and fits it to all held-out bins.

    logits (n, classes), labels (n,) in 0..classes-1, groups (n,) strings, training's bins per class (classes,). With fewer
    than NUM_FOLDS groups there are as many folds as groups; raises ValueError with fewer than two.
    """
    folds = assign_folds(groups)
    held_out: dict[Method, np.ndarray] = {}
    for method in METHODS:
        probabilities = np.empty(logits.shape, np.float64)
        for fold in np.unique(folds):
            inside = folds == fold
            fitted = fit_calibration(
                logits[~inside], labels[~inside], method, shift_of_mix(labels[~inside], training_histogram)
            )
            probabilities[inside] = apply_calibration(logits[inside], fitted)
        held_out[method] = probabilities
    shift = shift_of_mix(labels, training_histogram)
    # judged at the held-out bins' own mix, else the method that keeps training's the least would win where they differ
    nll = {method: negative_log_likelihood(at_mix(found, shift), labels) for method, found in held_out.items()}
    chosen = min(METHODS, key=lambda method: nll[method])
    fitted = fit_calibration(logits, labels, chosen, shift)
    threshold, outside = set_threshold(held_out[chosen], labels, folds)
    return FittedCalibration(
        fitted.model_copy(update={"held_out_nll": nll}),
        threshold,
        float(outside.mean()),
        held_out[chosen],
        len(labels),
        independent_bins(outside, groups),
    )


def assign_folds(groups: np.ndarray) -> np.ndarray:
    """A fold (n,) for each bin; bins of one group share it. Deterministic: groups in the order of their hash.
    Raises ValueError for fewer than two groups."""
    names = sorted(set(groups.tolist()), key=lambda name: hashlib.sha256(str(name).encode()).hexdigest())
    if len(names) < 2:
        raise ValueError(f"calibration needs at least 2 groups of held-out bins, found {len(names)}")
    num_folds = min(NUM_FOLDS, len(names))
    fold_of = {name: position % num_folds for position, name in enumerate(names)}
    return np.array([fold_of[name] for name in groups.tolist()])


def set_threshold(probabilities: np.ndarray, labels: np.ndarray, folds: np.ndarray) -> tuple[float, np.ndarray]:
    """LAC threshold for 90 % sets from all bins, and which bins (n,) lie outside a set thresholded without their fold, of
    probabilities (n, classes), labels (n,) in 0..classes-1 and folds (n,).

    Outside by the rule of the nightly `prediction_sets.PredictionSets.has_record`: the two shares are compared.
    """
    scores = 1 - probabilities[np.arange(len(labels)), labels]
    threshold = lac_quantile(scores)
    outside = np.zeros(len(labels), bool)
    for fold in np.unique(folds):
        inside = folds == fold
        bound = lac_quantile(scores[~inside])
        # 1 of too few others: none would be outside, and every night's share a drift
        outside[inside] = scores[inside] > (threshold if bound == 1 else bound)
    return threshold, outside


def independent_bins(outside: np.ndarray, groups: np.ndarray) -> int:
    """How many independent bins would tell the share of `outside` (n,) as well, at most n: bins of one of the `groups` (n,)
    are alike, and whole groups were drawn. n over Kish's design effect, by the variance of a ratio over groups
    (Cochran 1977, 6.4)."""
    num_bins, share = len(outside), outside.mean()
    sums = np.bincount(np.unique(groups, return_inverse=True)[1], outside - share)
    variance = len(sums) / max(1, len(sums) - 1) * np.square(sums).sum() / num_bins**2
    alone = share * (1 - share)
    return num_bins if variance * num_bins <= alone else max(1, int(alone / variance))
