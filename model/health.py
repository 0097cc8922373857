"""Rules that tell a sick training from a sound one, each with the evidence it saw.

They watch what SageMaker Debugger's built-in rules watched (vanishing gradient, exploding tensor, poor weight
initialisation, dead relu, loss not decreasing, overfit, class imbalance, low GPU utilisation), and whether anything is
learned but how common the counts are; and read only the figures in `Observations`, so each rule can be tried without
training anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from schemas.bundle import class_names

SAMPLE_EVERY = 25
"""Layers are looked at in one step of so many; the loss and the gradient norm in every one."""


@dataclass(frozen=True)
class Finding:
    """One rule that fired: `check_health` says which, and when."""

    rule: str = field(default="", kw_only=True)
    message: str
    """What was seen, what it means and what to try."""
    evidence: dict[str, Any]
    epoch: int = field(default=0, kw_only=True)


@dataclass
class Observations:
    """What the rules read. Epochs count from 0; losses are per photo."""

    num_classes: int
    label_histogram: list[int]
    initial_weight_std: dict[str, float] = field(default_factory=dict)
    """Per convolution: standard deviation of its weights over that of Kaiming's (sqrt(2 / fan out)), at the start."""
    step_losses: list[float] = field(default_factory=list)
    gradient_norms: list[float] = field(default_factory=list)
    """Of all gradients together, before clipping, per step."""
    layer_ratios: list[dict[str, float]] = field(default_factory=list)
    """Per sampled step and layer: norm of the gradient over norm of the weights."""
    dead_shares: list[dict[str, float]] = field(default_factory=list)
    """Per sampled step and ReLU: share of its channels that are zero for every photo of the micro-batch."""
    train_losses: list[float] = field(default_factory=list)
    """Mean per epoch."""
    image_sizes: list[int] = field(default_factory=list)
    """Side in pixels of the photos, per epoch."""
    selection_nlls: list[float] = field(default_factory=list)
    guess_nll: float = 0.0
    """Of saying for every selection photo how common each count is among the training photos."""
    settled_epochs: int = 0
    """How many there were of those at the end, on photos of the whole size: see `Recipe.is_settled`."""
    wait_shares: list[float] = field(default_factory=list)
    """Per epoch: share of the training time spent waiting for photos (the first batch of a run left out)."""
    first_epoch: int = 0
    """Of this process: after a kill a training goes on in another one."""
    from_scratch: bool = True

    @property
    def epoch(self) -> int:
        return len(self.train_losses)

    @property
    def comparable_epochs(self) -> list[int]:
        """Those on photos of the last epoch's size: on smaller ones a loss is another loss."""
        return [epoch for epoch, size in enumerate(self.image_sizes) if size == self.image_sizes[-1]]


def exploding_gradients(seen: Observations) -> Finding | None:
    """Not finite, or a step's gradient 1,000 times the median and above 100; or a loss far above guessing."""
    norms = seen.gradient_norms
    broken = [step for step, norm in enumerate(norms) if not math.isfinite(norm)]
    finite = sorted(norm for norm in norms if math.isfinite(norm))
    losses = [loss for loss in seen.step_losses if math.isfinite(loss)]
    worst = max(finite, default=0.0)
    median = finite[len(finite) // 2] if finite else 0.0
    guess = math.log(seen.num_classes)
    burst = len(finite) >= 10 and worst > 100 and worst > 1000 * median
    runaway = len(losses) >= 5 and max(losses) > 10 * guess
    if not (broken or burst or runaway):
        return None
    return Finding(
        "Gradients or losses run away: lower --learning-rate (a tenth), or lengthen the warm-up.",
        {
            "steps_not_finite": broken[:5],
            "largest_norm": worst,
            "median_norm": median,
            "largest_loss": max(losses, default=math.nan),
            "loss_of_guessing": guess,
        },
    )


def vanishing_gradients(seen: Observations) -> Finding | None:
    """In most of the last four sampled steps, a layer whose gradient is below 1e-7 of its weights."""
    # not the first step: in an untouched network the last normalisation of each residual branch is zero (see
    # build_network), so the branch's convolutions have no gradient yet
    recent = seen.layer_ratios[1:][-4:]
    if len(recent) < 2:
        return None
    low: dict[str, int] = {}
    for ratios in recent:
        for name, ratio in ratios.items():
            if ratio < 1e-7:
                low[name] = low.get(name, 0) + 1
    stuck = sorted(name for name, count in low.items() if 2 * count > len(recent))
    if not stuck:
        return None
    return Finding(
        "Layers receive (almost) no gradient and cannot learn: check the initial weights (--initialisation); where they "
        "have grown large, lower --learning-rate, else raise it.",
        {
            "layers": stuck[:10],
            "num_layers": len(stuck),
            "last_ratios": {n: recent[-1][n] for n in stuck[:5]},
        },
    )


def poor_initialisation(seen: Observations) -> Finding | None:
    """Weights of a layer all (nearly) equal or, from scratch, 30 times off Kaiming's spread (300 times above it where they
    were loaded) or with a first loss twice that of guessing."""
    off = {name: ratio for name, ratio in seen.initial_weight_std.items() if not 1 / 30 < ratio < 30}
    first = seen.step_losses[0] if seen.step_losses else 0.0
    guess = math.log(seen.num_classes)
    confidently_wrong = first > 2 * guess
    if not seen.from_scratch:
        # loaded filters have learnt their own spread; only a layer of equal weights is a defect, or of values that no
        # training leaves. And a head that was sure of other photos is surprised by its first batch, and learns
        off, confidently_wrong = {name: ratio for name, ratio in off.items() if not 1e-6 < ratio < 300}, False
    if not off and not confidently_wrong:
        return None
    return Finding(
        "The initial weights have a wrong spread, or the first predictions are confidently wrong: "
        + (
            "choose --initialisation kaiming-normal."
            if seen.from_scratch
            else "give other --weights, or --weights none."
        ),
        {
            "layers": dict(sorted(off.items())[:10]),
            "num_layers": len(off),
            "first_loss": first,
            "loss_of_guessing": guess,
        },
    )


def dead_activations(seen: Observations) -> Finding | None:
    """In the last three sampled steps, a ReLU with more than 60 % of its channels zero for every photo."""
    recent = seen.dead_shares[-3:]
    if len(recent) < 3:
        return None
    dead = {name: share for name, share in recent[-1].items() if all(shares[name] > 0.6 for shares in recent)}
    if not dead:
        return None
    return Finding(
        "Most channels of a layer are silent for every photo and learn nothing: lower --learning-rate, or check "
        "the initial weights.",
        {"share_of_dead_channels": dict(sorted(dead.items())[:10])},
    )


def loss_not_decreasing(seen: Observations) -> Finding | None:
    """After three epochs of at least 30 steps in all, the mean loss of the last three is not 1 % (after ten epochs 2 %)
    below the first epoch's; or the two or three after the best epoch on photos of the same size are 5 % above it.

    Loaded weights that count already may begin near the lowest loss they can have, and a rising learning rate first
    undoes some of what they know: of them only a rise of 20 % counts."""
    losses = seen.train_losses
    if len(losses) < 3 or len(seen.step_losses) < 30:
        return None
    last = losses[1:][-3:]
    # a slow learner is 1 % down after three epochs; one that is no further after ten has come to a halt
    knows = not seen.from_scratch and losses[0] < 0.85 * math.log(seen.num_classes)
    stalled = not knows and sum(last) / len(last) >= (0.99 if len(losses) < 10 else 0.98) * losses[0]
    comparable = [losses[epoch] for epoch in seen.comparable_epochs]
    best = min(comparable)
    # only what came after the best epoch: where the loss falls fast, the epochs before it are as far above
    since = comparable[comparable.index(best) + 1 :][-3:]
    risen = len(since) >= 2 and sum(since) / len(since) >= (1.2 if knows else 1.05) * best
    if not stalled and not risen:
        return None
    return Finding(
        "The training loss "
        + ("has risen again: lower" if risen else "does not fall: raise or lower")
        + " --learning-rate by a factor of 3, and look at sample photos with their records (jobs.explore).",
        {"first_loss": losses[0], "lowest_at_this_size": best, "last_losses": last},
    )


def overfitting(seen: Observations) -> Finding | None:
    """Selection NLL 5 % (in the last four tenths 1.5 %) above its best for two epochs running, while the training loss fell
    since that best; of the epochs on photos of the last one's size."""
    nlls, losses = seen.selection_nlls, seen.train_losses
    if len(nlls) < 3 or len(losses) != len(nlls):
        return None
    epochs = seen.comparable_epochs
    best = min(epochs, key=lambda epoch: nlls[epoch])
    # each NLL has a temperature and biases of its own, which take most of the rise away; and before, the learning rate is
    # too high to tell
    bound = 1.015 if seen.settled_epochs >= 2 else 1.05
    if (
        best not in epochs[:-2]
        or not all(nll > bound * nlls[best] for nll in nlls[-2:])
        or not losses[-1] < losses[best]
    ):
        return None
    return Finding(
        f"The network learns its training photos by heart since epoch {best + 1} (the weights that are kept are those of "
        "the best epoch on photos of the whole --image-size): add photos, raise --augmentation, raise --weight-decay, or "
        "train fewer epochs.",
        {
            "best_epoch": best + 1,
            "selection_nll_at_best": nlls[best],
            "selection_nlls": nlls[-5:],
            "train_losses": losses[-5:],
        },
    )


def nothing_learned(seen: Observations) -> Finding | None:
    """After three epochs of the last four tenths (so in trainings of six epochs or more), no selection NLL on photos of this
    size is 1 % below what a network reaches that knows how common each count is and doesn't look at the photo. On few photos
    chance alone gets there: with 50 for selection the rule fires in two of five such trainings, with 200 in all (simulated)."""
    # before them a slow learner on its rising learning rate can't be told from one with nothing to learn
    if seen.settled_epochs < 3:
        return None
    best = min(seen.selection_nlls[epoch] for epoch in seen.comparable_epochs)
    if best < 0.99 * seen.guess_nll:
        return None
    return Finding(
        "The network knows how common each count is, and nothing of the photos: are they joined to the right records? "
        "Look at sample photos with their records (jobs.explore); if they are right, raise --image-size or train from "
        "other --weights.",
        {"best_selection_nll": best, "nll_of_guessing": seen.guess_nll, "bins_per_class": seen.label_histogram},
    )


def class_imbalance(seen: Observations) -> Finding | None:
    """The commonest class has more than 20 times the bins of the rarest."""
    counts = seen.label_histogram
    if not counts or max(counts) <= 20 * max(1, min(counts)):
        return None
    rarest = counts.index(min(counts))
    merged = f", or lower --top-class to {min(rarest, len(counts) - 2)}" if rarest and len(counts) > 2 else ""
    return Finding(
        f"Class {class_names(len(counts) - 1)[rarest]} has few examples; its counts will be poor: add such bins{merged}.",
        {"bins_per_class": counts, "ratio": max(counts) / max(1, min(counts))},
    )


def stalled_on_data(seen: Observations) -> Finding | None:
    """In the last epoch, not the first of its process, more than 20 % of the training time was spent waiting for photos."""
    # in the first one the tasks that prepare them still start
    if len(seen.wait_shares) - seen.first_epoch < 2 or seen.wait_shares[-1] <= 0.2:
        return None
    return Finding(
        "The network waits for photos: give the cluster more CPUs for decoding, put the photos nearer, or store "
        "them smaller.",
        {"wait_shares": seen.wait_shares[-5:]},
    )


RULES: tuple[Callable[[Observations], Finding | None], ...] = (
    exploding_gradients,
    vanishing_gradients,
    poor_initialisation,
    dead_activations,
    loss_not_decreasing,
    overfitting,
    nothing_learned,
    class_imbalance,
    stalled_on_data,
)
# Conditions of the data and of the machine: worth saying, no reason to stop.
NEVER_STOP = frozenset({"class_imbalance", "stalled_on_data"})


def consequence(rules: Sequence[str], *, has_best_epoch: bool) -> Literal["go on", "end", "stop"]:
    """What the `rules` that fire (those of NEVER_STOP left out) mean for a training that is told to stop when it is
    unhealthy: `end` keeps the bundle of the best epoch, which learning by heart spoils no more than where a training stops
    early by itself. Before there can be one, larger photos are still to come."""
    if list(rules) == [overfitting.__name__]:
        return "end" if has_best_epoch else "go on"
    return "stop" if rules else "go on"


def check_health(seen: Observations) -> list[Finding]:
    """All rules that fire on what has been seen so far."""
    return [
        replace(finding, rule=rule.__name__, epoch=seen.epoch) for rule in RULES if (finding := rule(seen)) is not None
    ]
