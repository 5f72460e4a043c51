"""Defences beside adversarial training, and the checks that tell a real one from a hidden gradient."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cnnstudy.attacks import AttackConfig
from cnnstudy.config import Refused, Setup
from cnnstudy.data import CifarConfig
from cnnstudy.defences import league
from cnnstudy.defences.fronts import BitDepth, Blur
from cnnstudy.defences.masking import masking_checks, naive, saturation, unmask
from cnnstudy.defences.tasks import distilled, hot, noisy, penalized
from cnnstudy.models import ResNetConfig, build
from cnnstudy.train import Recipe

TINY = ResNetConfig(depth=8, width=4)
CFG = AttackConfig(4, steps=3, restarts=1, queries=3)


@pytest.fixture()
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.rand(8, 3, 16, 16), torch.arange(8)


class Linear(nn.Module):
    """Logits that are a known linear function of the pixels."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer = nn.Linear(3 * 16 * 16, 10)
        self.scale = scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * self.layer(x.flatten(1))


def test_bit_depth_rounds_and_lets_the_gradient_through() -> None:
    x = torch.tensor([0.0, 0.1, 0.5, 0.95, 1.0], requires_grad=True)
    out = BitDepth(1)(x)
    assert out.tolist() == pytest.approx([0, 0, 0, 1, 1])  # halves go to even
    out.sum().backward()
    assert x.grad is not None and x.grad.tolist() == [1.0] * 5
    with pytest.raises(Refused, match="bit depth"):
        BitDepth(0)


def test_blur_keeps_flat_images_and_flattens_checkerboards() -> None:
    flat = torch.full((1, 3, 16, 16), 0.3)
    torch.testing.assert_close(Blur(1.0)(flat), flat)
    board = (torch.arange(16)[:, None] + torch.arange(16)) % 2
    assert Blur(1.0)(board.float().expand(1, 3, 16, 16)).std() < 0.05


def test_penalty_is_the_first_order_loss_of_the_worst_image(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, y = batch
    model, eps = Linear(), 1e-3
    with torch.no_grad():
        z = model(x)
        slope = (F.softmax(z, 1) - F.one_hot(y, 10)) @ model.layer.weight
        worst = F.cross_entropy(model(x + eps / 255 * slope.sign().view_as(x)), y)
    torch.testing.assert_close(penalized(eps)(model, batch)["loss"].detach(), worst, rtol=1e-4, atol=1e-5)
    penalized(4.0)(build(TINY), batch)["loss"].backward()  # through batch norm, twice


def test_hot_and_distilled_agree_on_one_hot_teachers(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, y = batch

    class Sure(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 1e4 * F.one_hot(y, 10).float()

    model = Linear()
    torch.testing.assert_close(distilled(Sure(), 20)(model, batch)["loss"], hot(20)(model, batch)["loss"])
    torch.testing.assert_close(hot(1)(model, batch)["loss"], F.cross_entropy(model(x), y))
    with pytest.raises(Refused, match="temperature"):
        hot(0)


def test_noise_of_zero_is_plain_training(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    model = Linear()
    torch.testing.assert_close(noisy(0)(model, batch)["loss"], F.cross_entropy(model(batch[0]), batch[1]))
    assert not torch.equal(noisy(8)(model, batch)["loss"], noisy(0)(model, batch)["loss"])


def test_every_defence_of_the_league_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CNNSTUDY_CACHE", str(tmp_path))
    setup = Setup(model=TINY, data=CifarConfig(train=200, test=200), recipe=Recipe(steps=2, batch=50))
    for name in league.DEFENCES:
        model = league.defended(name, setup, league.Strengths(), 0)
        assert model(torch.rand(2, 3, 32, 32)).shape == (2, 10) and not model.training, name
    assert len(list((tmp_path / "checkpoints").glob("*.safetensors"))) == 6  # bit depth, blur and none share one
    with pytest.raises(Refused, match="unknown defence"):
        league.defended("prayer", setup, league.Strengths(), 0)


def test_a_saturated_network_fools_the_naive_attack_alone(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, _ = batch
    plain, hidden = Linear(), Linear(scale=1e5)  # the same decisions, logits 100,000 times larger
    y = plain(x).argmax(1)
    strong = AttackConfig(8, steps=5, restarts=1, queries=0)
    assert naive(hidden, x, y, strong).float().mean() > naive(plain, x, y, strong).float().mean()
    found = unmask(hidden, plain, x, y, [8], AttackConfig(1, steps=5, restarts=1, queries=2, temperature=1e5))
    assert found["worst"]["8"] <= found["adaptive"]["8"] < found["naive"]["8"]
    assert found["loss_zero"] > 0 and found["margin_slope"] == pytest.approx(unmask(plain, plain, x, y, [8], CFG)["margin_slope"], rel=1e-3)


def test_masking_checks_of_a_linear_network(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, _ = batch
    model = Linear()
    found = masking_checks(model, Linear(), x, model(x).argmax(1), AttackConfig(4, steps=20, restarts=1, queries=3))
    assert found["clean"] == 1 and found["limit"] == 0
    assert found["by_steps"]["200"] <= found["by_steps"]["1"] and found["strong"] <= found["fgsm"]


def test_saturation_hides_the_loss_and_not_the_margin() -> None:
    warm, hot_ = saturation(5, 1), saturation(5, 100)
    assert warm["loss"] > 1e-3 and hot_["loss"] == 0
    assert warm["margin"] == pytest.approx(hot_["margin"])
