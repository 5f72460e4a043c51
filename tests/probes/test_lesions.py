"""A network without some of its blocks against the same network computed by hand, and what a lesion leaves behind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cnnstudy.config import Refused
from cnnstudy.models import build
from cnnstudy.models.bottleneck import BottleneckConfig
from cnnstudy.models.resnet import ResNetConfig
from cnnstudy.models.wide import WideConfig
from cnnstudy.probes import lesions
from cnnstudy.train import evaluate

CONFIGS = [
    ResNetConfig(depth=14, width=4), ResNetConfig(depth=14, width=4, preact=True), ResNetConfig(depth=14, width=4, shortcut="B"),
    WideConfig(depth=16, k=1), WideConfig(depth=20, k=1, bottleneck=True), BottleneckConfig(depth=20, width=4, path_width=4),
]  # fmt: skip


def made(cfg: Any) -> nn.Module:
    torch.manual_seed(0)
    model = build(cfg)
    model(torch.rand(16, 3, 16, 16))  # statistics that are not 0 and 1
    return model.eval()


def by_hand(model: Any, x: torch.Tensor, gone: set[int]) -> torch.Tensor:
    """The network as its paper writes it, block by block, without the branches in ``gone``."""
    h = model.stem(model.normalize(x))
    for i, block in enumerate(model.blocks()):
        if hasattr(block, "before"):
            inner = block.before(h)
            h = (h if block.shortcut is None else block.shortcut(inner)) + (0 if i in gone else block.branch(inner))
        else:
            h = block.out(block.shortcut(h) + (0 if i in gone else block.branch(h)))
    h = model.final(h) if hasattr(model, "final") else h
    return model.head(h.mean((2, 3)))


@pytest.mark.parametrize("cfg", CONFIGS, ids=str)
@pytest.mark.parametrize("gone", [(0,), (1,), (2,), (1, 3, 5)])
def test_a_residual_block_leaves_its_shortcut(cfg: Any, gone: tuple[int, ...]) -> None:
    model, x = made(cfg), torch.rand(3, 3, 16, 16)
    with torch.no_grad():
        whole, expected = model(x), by_hand(model, x, set(gone))
        with lesions.delete(model, *gone) as same:
            assert same is model
            assert torch.allclose(model(x), expected, atol=1e-6)
        assert not torch.allclose(whole, expected, atol=1e-4)
        assert torch.equal(model(x), whole)


def test_a_plain_block_goes_as_a_whole() -> None:
    model, x = made(ResNetConfig(depth=14, width=4, skip=False, act="gelu")), torch.rand(3, 3, 16, 16)
    assert lesions.deletable(model) == [0, 1, 3, 5]  # the first blocks of stages two and three change the shape
    with torch.no_grad():
        h = model.stem(model.normalize(x))
        for i, block in enumerate(model.blocks()):
            h = h if i == 3 else block(h)
        with lesions.delete(model, 3):
            assert torch.allclose(model(x), model.head(h.mean((2, 3))), atol=1e-6)


def test_the_model_is_whole_again_even_after_an_error() -> None:
    for cfg in (ResNetConfig(depth=8, width=4), ResNetConfig(depth=14, width=4, skip=False)):
        model = made(cfg)
        before = list(model.named_modules())
        with pytest.raises(ZeroDivisionError), lesions.delete(model, 0):
            raise ZeroDivisionError
        assert [(name, id(m)) for name, m in model.named_modules()] == [(name, id(m)) for name, m in before]


def test_accuracy_of_each_lesion_and_what_cannot_be_deleted() -> None:
    model = made(ResNetConfig(depth=14, width=4, skip=False)).train()
    x, y = torch.rand(40, 3, 16, 16), torch.arange(40) % 10
    found = lesions.accuracy_without(model, x, y)
    assert np.isnan(found).tolist() == [False, False, True, False, True, False]
    with lesions.delete(model, 1):
        assert found[1] == evaluate(model, x, y)["acc"]
    assert model.training


def test_several_at_once() -> None:
    model = made(WideConfig(depth=16, k=1))
    x, y = torch.rand(40, 3, 16, 16), torch.arange(40) % 10
    found = lesions.accuracy_without_several(model, x, y, [0, 1, 6], draws=3)
    assert found[0] == evaluate(model, x, y)["acc"]
    with lesions.delete(model, *range(6)):
        assert found[2] == evaluate(model, x, y)["acc"]
    assert np.array_equal(found, lesions.accuracy_without_several(model, x, y, [0, 1, 6], draws=3))


def test_summary_counts_cheap_deletions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lesions, "accuracy", lambda *_: 0.9)
    monkeypatch.setattr(lesions, "accuracy_without", lambda *_: np.array([0.895, np.nan, 0.85, 0.91, 0.885]))
    found = lesions.summary(nn.Identity(), torch.zeros(1), torch.zeros(1))
    assert found["cheap_share"] == 0.5 and found["deletable"] == 4
    assert found["worst_loss"] == pytest.approx(0.05) and found["mean_loss"] == pytest.approx(0.015)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: lesions.blocks_of(nn.Linear(1, 1)), "Linear has no blocks"),
        (lambda m: lesions.delete(m, 6).__enter__(), "there is no block 6; valid: 0 to 5"),
        (lambda m: lesions.delete(m, -1).__enter__(), "there is no block -1"),
        (lambda m: lesions.delete(m, 2).__enter__(), "changes the shape; valid: 0, 1, 3, 5"),
        (lambda m: lesions.accuracy_without_several(m, torch.zeros(1), torch.zeros(1), [5]), "4 blocks can be deleted"),
    ],
)
def test_refusals(call: Any, message: str) -> None:
    with pytest.raises(Refused, match=message):
        call(build(ResNetConfig(depth=14, width=4, skip=False)))
