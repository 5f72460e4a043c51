"""Keeping states of a training: at a given accuracy, and where a network withstands attacks best."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cnnstudy.attacks import AttackConfig, displacement, smallest
from cnnstudy.config import Refused
from cnnstudy.data import Data
from cnnstudy.defences.keeping import KeepMostRobust, MatchAccuracy, matched
from cnnstudy.models import ResNetConfig, build
from cnnstudy.train import evaluate

TINY = ResNetConfig(depth=8, width=4)
CFG = AttackConfig(4, steps=2, restarts=1, queries=2)


@pytest.fixture(scope="module")
def images() -> Data:
    torch.manual_seed(0)
    x, y = torch.rand(40, 3, 16, 16), torch.arange(40) % 10
    return Data(x, y, x, y)


class Answers(nn.Module):
    """Says a fixed share of the labels right, whatever it sees; ``share`` is part of its state."""

    def __init__(self, y: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("right", torch.tensor(0))
        self.y = y

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wrong = torch.arange(len(x)) >= int(self.right)
        return nn.functional.one_hot((self.y[: len(x)] + wrong) % 10, 10).float() + 0 * x.mean()


def test_match_accuracy_keeps_the_last_state_within_reach(images: Data) -> None:
    model = Answers(images.y_test)
    match = MatchAccuracy(images.x_test, images.y_test, level=0.5, every=2, within=0.03)
    for step, right in enumerate([20, 4, 21, 20, 30]):
        model.right.fill_(right)
        match.on_backward(model, step)
    assert int(match.kept["right"]) == 21 and match.accuracy == pytest.approx(21 / 40)  # step 3 is not looked at


def test_match_accuracy_gives_the_network_back(images: Data) -> None:
    torch.manual_seed(1)
    model = build(TINY)
    level = evaluate(model, images.x_test, images.y_test)["acc"]
    match = MatchAccuracy(images.x_test, images.y_test, level=max(level, 0.01), within=0.02)
    assert match.network(TINY) is None and matched(None, images, 10, CFG) == {}
    match.on_backward(model, 0)
    kept = match.network(TINY)
    assert kept is not None and not kept.training
    torch.testing.assert_close(kept(images.x_test), model.eval()(images.x_test))
    found = matched(kept, images, 10, CFG)["matched"]
    assert found["val_acc"] == pytest.approx(level) and {"median_eps", "kept_0_5", "kept_8"} <= set(found)


def test_keep_most_robust_restores_the_best_epoch(images: Data) -> None:
    model = Answers(images.y_test)
    keep = KeepMostRobust(images.x_test, images.y_test, CFG)
    assert keep.summary() == {}
    for epoch, right in enumerate([40, 10, 30, 30, 6]):  # epoch 0 is before training
        model.right.fill_(right)
        keep.on_epoch(model, epoch)
    found = keep.summary()
    assert found["best_epoch"] == 3 and found["overfitted"] is True
    assert found["watched"] == pytest.approx([0.25, 0.75, 0.75, 0.15])
    keep.restore(model)
    assert int(model.right) == 30


def test_bad_settings_are_refused(images: Data) -> None:
    with pytest.raises(Refused, match="accuracy to match"):
        MatchAccuracy(images.x_test, images.y_test, level=60)
    with pytest.raises(Refused, match="updates between"):
        MatchAccuracy(images.x_test, images.y_test, level=0.6, every=0)


def test_displacement_is_larger_under_attack_than_under_noise(images: Data) -> None:
    torch.manual_seed(2)
    model = build(TINY).eval()
    found = displacement(model, images.x_test, images.y_test)
    assert 0 < found["moved_noise"] < found["moved_attack"] and found["margin_slope"] > 0
    twice = displacement(model, images.x_test, images.y_test, eps=2.0)
    assert twice["moved_attack"] > found["moved_attack"]
    with pytest.raises(Refused, match="no features"):
        displacement(nn.Sequential(model), images.x_test, images.y_test)


def test_smallest_fools_and_leaves_wrong_images_alone(images: Data) -> None:
    torch.manual_seed(3)
    model = build(TINY).eval()
    x = images.x_test[:8]
    answers = model(x).argmax(1)
    y = torch.where(torch.arange(8) < 6, answers, (answers + 1) % 10)
    delta = smallest(model, x, y, CFG)
    assert (delta[6:] == 0).all() and ((x + delta) >= -1e-6).all() and ((x + delta) <= 1 + 1e-6).all()
    moved = delta[:6].flatten(1).abs().amax(1) > 0
    assert moved.any() and (model(x + delta).argmax(1)[:6][moved] != y[:6][moved]).all()
