"""Every rule fires on a sick training and stays silent on a sound one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from model import health
from model.health import ActivationWatch, Observations, check_health, initial_weight_std, layer_ratios
from model.network import build_network
from model.optimisation import CountingNetwork


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
    return Observations(**(figures | changes))


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
    "vanishing_gradients": [{"layer_ratios": [{"conv1": 1e-9, "fc": 1e-2}] * 4}],
    "poor_initialisation": [
        {"initial_weight_std": {"conv1": 0.0, "layer1.0.conv1": 1.0}},
        {"initial_weight_std": {"conv1": 80.0}},
        {"step_losses": [9.0, 3.0, 2.0, 1.9, 1.8]},
    ],
    "dead_activations": [{"dead_shares": [{"relu": 0.9}] * 3}],
    "loss_not_decreasing": [{"train_losses": [1.9, 1.91, 1.895, 1.9]}],
    "overfitting": [{"selection_nlls": [1.8, 1.6, 1.75, 1.9, 2.1]}],
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
    assert findings[0].to_dict()["rule"] == rule


def test_every_rule_has_a_sick_case() -> None:
    assert {rule.__name__ for rule in health.RULES} == set(SICK)


NEARLY: dict[str, dict[str, Any]] = {
    "exploding_gradients": {"gradient_norms": [0.5] * 50 + [90.0]},
    "vanishing_gradients": {"layer_ratios": [{"conv1": 1e-9}, {"conv1": 1e-3}, {"conv1": 1e-3}]},
    "poor_initialisation": {"initial_weight_std": {"conv1": 0.2, "layer1.0.conv1": 5.0}},
    "dead_activations": {"dead_shares": [{"relu": 0.9}, {"relu": 0.3}, {"relu": 0.9}]},
    "loss_not_decreasing": {"train_losses": [1.9, 1.91, 1.85]},
    "overfitting": {"selection_nlls": [1.8, 1.6, 1.62, 1.65, 1.66]},
    "class_imbalance": {"label_histogram": [100, 1900]},
    "stalled_on_data": {"wait_shares": [0.6, 0.15]},
}


@pytest.mark.parametrize("rule", NEARLY)
def test_a_rule_stays_silent_just_short_of_its_bound(rule: str) -> None:
    check: Callable[[Observations], Any] = getattr(health, rule)
    assert check(sound(**NEARLY[rule])) is None


def test_loaded_filters_may_have_their_own_spread() -> None:
    assert health.poor_initialisation(sound(from_scratch=False, initial_weight_std={"conv1": 40.0})) is None
    assert health.poor_initialisation(sound(from_scratch=False, initial_weight_std={"conv1": 0.0})) is not None


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


def test_layer_ratios_leave_out_what_does_not_train() -> None:
    trained = network()
    trained.resnet.conv1.weight.requires_grad_(False)
    logits, _ = trained(torch.rand(4, 3, 32, 32))
    logits.sum().backward()
    ratios = layer_ratios(trained)
    assert "resnet.conv1" not in ratios
    assert ratios["resnet.fc"] > 0
