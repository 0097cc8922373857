"""Every rule fires on a sick training and stays silent on a sound one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from model import health
from model.health import Observations, check_health, consequence
from model.network import CountingNetwork, build_network
from model.watching import ActivationWatch, initial_weight_std, layer_ratios


def sound(**changes: Any) -> Observations:
    """Five epochs of 20 steps of a training that learns."""
    losses = [1.9 * 0.995**step for step in range(100)]
    figures: dict[str, Any] = {
        "num_classes": 7,
        "label_histogram": [100, 400, 700, 900, 800, 650, 1700],
        "initial_weight_std": {"conv1": 1.0, "layer1.0.conv1": 1.02},
        "step_losses": losses,
        "gradient_norms": [2.0 + (step % 7) / 3 for step in range(100)],
        "layer_ratios": [{"conv1": 1e-3, "fc": 1e-2}] * 4,
        "dead_shares": [{"relu": 0.0, "layer1.0.relu": 0.1}] * 4,
        "train_losses": [sum(losses[start : start + 20]) / 20 for start in range(0, 100, 20)],
        "selection_nlls": [1.8, 1.7, 1.65, 1.62, 1.63],
        "wait_shares": [0.05] * 5,
    }
    sizes = [112] * len(changes.get("train_losses", figures["train_losses"]))
    return Observations(**({"image_sizes": sizes} | figures | changes))


def test_a_sound_training_has_no_findings() -> None:
    assert check_health(sound()) == []


def test_nothing_is_found_before_anything_was_seen() -> None:
    assert check_health(Observations(num_classes=7, label_histogram=[10] * 7)) == []


SICK: dict[str, list[dict[str, Any]]] = {
    "exploding_gradients": [
        {"gradient_norms": [2.0] * 50 + [math.nan]},
        {"gradient_norms": [0.5] * 50 + [800.0]},
        {"step_losses": [1.9, 5.0, 80.0, 300.0, 12.0]},
    ],
    "vanishing_gradients": [
        {"layer_ratios": [{"conv1": 1e-9, "fc": 1e-2}] * 4},
        {"layer_ratios": [{"conv1": 1e-3}] * 20 + [{"conv1": 1e-9}] * 3},
    ],
    "poor_initialisation": [
        {"initial_weight_std": {"conv1": 0.0, "layer1.0.conv1": 1.0}},
        {"initial_weight_std": {"conv1": 80.0}},
        {"step_losses": [9.0, 3.0, 2.0, 1.9, 1.8]},
    ],
    "dead_activations": [{"dead_shares": [{"relu": 0.9}] * 3}],
    "loss_not_decreasing": [
        {"train_losses": [1.9, 1.91, 1.895, 1.9]},
        {"train_losses": [1.75, 1.70] + [2.6] * 20},
        {"train_losses": [1.76] + [1.74] * 21},
        {"train_losses": [1.9, 1.5, 1.3, 1.2, 1.1, 1.05, 1.2, 1.25]},
        {"train_losses": [1.9, 1.7, 1.5, 1.45, 1.6, 1.62], "image_sizes": [64, 64, 112, 112, 112, 112]},
    ],
    "overfitting": [
        {"selection_nlls": [1.8, 1.6, 1.75, 1.9, 2.1]},
        {"selection_nlls": [1.8, 1.7, 1.6, 1.75, 1.9], "image_sizes": [64, 64, 112, 112, 112]},
        {"selection_nlls": [1.8, 1.699, 1.72, 1.75, 1.753], "settled_epochs": 2},  # 800 photos by heart
    ],
    # guessing: 1.753
    "nothing_learned": [
        {"selection_nlls": [1.9, 1.76, 1.749, 1.75, 1.749], "guess_nll": 1.753, "settled_epochs": 3},
        {
            "selection_nlls": [1.7, 1.7, 1.75, 1.75, 1.75],
            "guess_nll": 1.753,
            "settled_epochs": 3,
            "image_sizes": [64, 64, 112, 112, 112],
        },
    ],
    "class_imbalance": [{"label_histogram": [2, 400, 700, 900, 800, 650, 1700]}],
    "stalled_on_data": [{"wait_shares": [0.1, 0.5]}],
}


@pytest.mark.parametrize(
    ("rule", "changes"), [(rule, changes) for rule, cases in SICK.items() for changes in cases], ids=str
)
def test_a_rule_fires_with_evidence_and_a_remedy(rule: str, changes: dict[str, Any]) -> None:
    findings = [finding for finding in check_health(sound(**changes)) if finding.rule == rule]
    assert len(findings) == 1
    assert findings[0].evidence
    assert len(findings[0].message) > 40


@pytest.mark.parametrize(
    ("histogram", "name", "lowers"),
    [
        ([2, 400, 900], "Class 0 has", False),
        ([400, 2, 900], "Class 1 has", True),
        ([400, 900, 2], "Class 2+ has", True),
        ([900, 2], "Class 1+ has", False),
    ],
)
def test_a_rare_class_is_named_and_merged_only_where_that_helps(histogram: list[int], name: str, lowers: bool) -> None:
    finding = health.class_imbalance(sound(label_histogram=histogram))
    assert finding is not None and finding.message.startswith(name)
    assert ("--top-class" in finding.message) == lowers


def test_every_rule_has_a_sick_case() -> None:
    assert {rule.__name__ for rule in health.RULES} == set(SICK)


NEARLY: dict[str, list[dict[str, Any]]] = {
    "exploding_gradients": [{"gradient_norms": [0.5] * 50 + [90.0]}],
    "vanishing_gradients": [
        {"layer_ratios": [{"conv1": 1e-9}, {"conv1": 1e-9}, {"conv1": 1e-3}]},
        {"layer_ratios": [{"conv1": 1e-9}] * 5 + [{"conv1": 1e-3}] * 4},
    ],
    "poor_initialisation": [{"initial_weight_std": {"conv1": 0.2, "layer1.0.conv1": 5.0}}],
    "dead_activations": [{"dead_shares": [{"relu": 0.9}, {"relu": 0.3}, {"relu": 0.9}]}],
    "loss_not_decreasing": [
        {"train_losses": [1.9, 1.91, 1.85]},
        # the learning rate has come to zero
        {"train_losses": [1.83, 1.74, 1.68, 1.63, 1.59, 1.57, 1.56, 1.56, 1.555, 1.558, 1.561, 1.559, 1.560]},
        # still falling fast
        {"train_losses": [1.9, 1.4, 0.9, 0.5]},
        # one bad epoch
        {"train_losses": [1.9, 1.6, 1.5, 1.65]},
        # larger photos
        {"train_losses": [1.9, 1.7, 1.5, 1.62, 1.6], "image_sizes": [64, 64, 64, 112, 112]},
    ],
    "overfitting": [
        {"selection_nlls": [1.8, 1.6, 1.62, 1.65, 1.66]},
        {"selection_nlls": [1.8, 1.6, 1.61, 1.61, 1.62], "settled_epochs": 2},
        {"selection_nlls": [1.8, 1.4, 1.6, 1.55, 1.5], "image_sizes": [64, 64, 112, 112, 112]},
        {"selection_nlls": [1.8, 1.7, 1.4, 1.6, 1.6], "image_sizes": [64, 64, 64, 112, 112]},
    ],
    "nothing_learned": [
        {"selection_nlls": [1.9, 1.76, 1.75, 1.75, 1.73], "guess_nll": 1.753, "settled_epochs": 3},
        # the learning rate is still high
        {"selection_nlls": [1.9, 1.76, 1.75, 1.75, 1.75], "guess_nll": 1.753, "settled_epochs": 2},
    ],
    "class_imbalance": [{"label_histogram": [100, 1900]}],
    # of the last, a process that went on after a kill starts its tasks
    "stalled_on_data": [
        {"wait_shares": [0.6, 0.15]},
        {"wait_shares": [0.5]},
        {"wait_shares": [0.1, 0.1, 0.5], "first_epoch": 2},
    ],
}


@pytest.mark.parametrize(
    ("rule", "changes"), [(rule, changes) for rule, cases in NEARLY.items() for changes in cases], ids=str
)
def test_a_rule_stays_silent_just_short_of_its_bound(rule: str, changes: dict[str, Any]) -> None:
    check: Callable[[Observations], Any] = getattr(health, rule)
    assert check(sound(**changes)) is None


def test_overfitting_alone_ends_a_training_with_its_best_epoch_and_other_rules_stop_it() -> None:
    assert consequence(["overfitting"], has_best_epoch=True) == "end"
    assert consequence(["overfitting"], has_best_epoch=False) == "go on"
    assert consequence(["overfitting", "vanishing_gradients"], has_best_epoch=True) == "stop"
    assert consequence([], has_best_epoch=True) == "go on"


def test_overfitting_is_dated_from_the_best_epoch_on_photos_of_the_same_size() -> None:
    changes = {"selection_nlls": [1.5, 1.8, 1.6, 1.75, 1.9], "image_sizes": [32, 64, 64, 64, 64]}
    finding = health.overfitting(sound(**changes))
    assert finding is not None
    assert finding.evidence["best_epoch"] == 3
    assert "since epoch 3 " in finding.message


def test_a_loss_that_rose_again_is_told_from_one_that_never_fell() -> None:
    risen = health.loss_not_decreasing(sound(train_losses=[1.75, 1.70] + [2.6] * 20))
    flat = health.loss_not_decreasing(sound(train_losses=[1.76] + [1.74] * 21))
    assert risen is not None
    assert flat is not None
    assert "has risen again" in risen.message
    assert "does not fall" in flat.message


def test_loaded_filters_may_have_their_own_spread() -> None:
    assert health.poor_initialisation(sound(from_scratch=False, initial_weight_std={"conv1": 40.0})) is None
    equal = health.poor_initialisation(sound(from_scratch=False, initial_weight_std={"conv1": 0.0}))
    assert equal is not None and "give other --weights" in equal.message
    assert health.poor_initialisation(sound(from_scratch=False, initial_weight_std={"conv1": 1000.0})) is not None
    # a loaded head that was sure of other photos
    assert health.poor_initialisation(sound(from_scratch=False, step_losses=[9.0, 3.0, 2.0, 1.9, 1.8])) is None


def test_loaded_weights_need_not_get_better_at_once() -> None:
    near_their_best = sound(from_scratch=False, train_losses=[1.30, 1.36, 1.40, 1.38])
    assert health.loss_not_decreasing(near_their_best) is None
    assert health.loss_not_decreasing(sound(from_scratch=False, train_losses=[1.30, 1.60, 1.70, 1.75])) is not None
    new_head = sound(from_scratch=False, train_losses=[1.94, 1.94, 1.93, 1.94])
    assert health.loss_not_decreasing(new_head) is not None


def network() -> CountingNetwork:
    torch.manual_seed(0)
    return CountingNetwork(build_network("resnet18", 7), auxiliary=False)


def test_a_fresh_network_has_the_spread_that_the_rule_expects() -> None:
    ratios = initial_weight_std(network())
    assert len(ratios) == 20
    assert all(0.8 < ratio < 1.25 for ratio in ratios.values())


def test_constant_weights_are_seen_on_a_real_network() -> None:
    sick = network()
    for parameter in sick.parameters():
        torch.nn.init.constant_(parameter, 0.01)
    finding = health.poor_initialisation(sound(initial_weight_std=initial_weight_std(sick)))
    assert finding is not None
    assert finding.evidence["num_layers"] == 20


def test_dead_channels_are_seen_on_a_real_network() -> None:
    sick = network().train()
    watch = ActivationWatch(sick)
    torch.nn.init.constant_(sick.resnet.bn1.weight, 0.0)
    torch.nn.init.constant_(sick.resnet.bn1.bias, -1.0)
    sick(torch.rand(4, 3, 32, 32))
    assert watch.take() == {}  # only while watching
    watch.watching = True
    sick(torch.rand(4, 3, 32, 32))
    dead = watch.take()
    assert dead["resnet.relu"] == 1.0
    assert watch.take() == {}


def test_the_branches_of_an_untouched_network_have_no_gradient_and_that_is_no_finding() -> None:
    untouched = network()
    logits, _ = untouched(torch.rand(4, 3, 32, 32))
    F.cross_entropy(logits, torch.arange(4)).backward()
    first = layer_ratios(untouched)
    assert sum(ratio == 0 for ratio in first.values()) >= 8
    healthy = dict.fromkeys(first, 1e-3)
    for num_healthy in (1, 2, 3):
        assert health.vanishing_gradients(sound(layer_ratios=[first] + [healthy] * num_healthy)) is None


def test_layer_ratios_leave_out_what_does_not_train() -> None:
    trained = network()
    trained.resnet.conv1.weight.requires_grad_(False)
    logits, _ = trained(torch.rand(4, 3, 32, 32))
    logits.sum().backward()
    ratios = layer_ratios(trained)
    assert "resnet.conv1" not in ratios
    assert ratios["resnet.fc"] > 0


def test_a_selection_loss_that_rises_with_the_training_loss_is_no_learning_by_heart() -> None:
    rising = {"selection_nlls": [1.8, 1.6, 1.75, 1.9, 2.1], "train_losses": [1.8, 1.7, 1.71, 1.72, 1.73]}
    assert health.overfitting(sound(**rising)) is None
