"""The identity regression: exact solutions, errors by hand, and a training that can be followed step by step."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cnnstudy import identity
from cnnstudy.config import Refused
from cnnstudy.identity import RegressionConfig, Units, UnitsConfig
from cnnstudy.train import Diverged

SMALL = RegressionConfig(steps=20, pilot_steps=5, images=100, held_out=50, batch=8)


def centred(net: Units) -> Units:
    """With kernels that hand on their input."""
    for m in net.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.dirac_(m.weight)
    return net


def test_the_plain_stack_has_an_exact_solution() -> None:
    x = torch.rand(5, 4, 8, 8)
    assert identity.error(centred(Units(UnitsConfig(3, residual=False, norm="none", channels=4))), x) == 0
    net = centred(Units(UnitsConfig(2, residual=False, channels=4)))
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):  # undoing itself
            m.running_mean.uniform_(0.1, 0.5)
            m.running_var.uniform_(0.5, 2)
            m.weight.data = (m.running_var + m.eps).sqrt()
            m.bias.data = m.running_mean.clone()
    assert identity.error(net, x) < 1e-12


def test_the_residual_stack_starts_as_its_solution_with_zero_last() -> None:
    for norm in ("batch", "none"):
        net = Units(UnitsConfig(3, norm=norm, zero_last=True, channels=4))
        x = torch.rand(5, 4, 8, 8)
        assert identity.error(net, x) == 0 and identity.branch_ratios(net, x) == [0, 0, 0]
        assert identity.error(Units(UnitsConfig(3, norm=norm, channels=4)), x) > 0.1


def test_the_error_by_hand() -> None:
    class Silent(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 0.0

    x = torch.rand(7, 4, 8, 8) * torch.tensor([1.0, 2, 3, 4])[:, None, None]
    a = x.numpy().transpose(1, 0, 2, 3).reshape(4, -1)
    assert identity.error(Silent(), x) == pytest.approx(float(np.mean(a**2) / a.var(1).mean()), rel=1e-5)


def test_identical_layers() -> None:
    torch.manual_seed(0)
    plain = Units(UnitsConfig(2, residual=False))
    torch.manual_seed(0)
    residual = Units(UnitsConfig(2))
    assert plain.state_dict().keys() == residual.state_dict().keys()
    assert all(torch.equal(value, residual.state_dict()[name]) for name, value in plain.state_dict().items())
    x = torch.rand(3, 16, 8, 8)
    first, other = plain[0], residual[0]
    torch.testing.assert_close(other(x), (first.branch(x) + x).relu())
    torch.testing.assert_close(first(x), first.branch(x).relu())
    convs = [m for m in Units(UnitsConfig(norm="none")).modules() if isinstance(m, nn.Conv2d)]
    assert len(convs) == 2 and all(m.bias is not None and not m.bias.any() for m in convs)


def test_branch_ratios_by_hand() -> None:
    for residual in (True, False):
        net = Units(UnitsConfig(2, residual=residual, channels=4)).eval()
        x = torch.rand(5, 4, 8, 8)
        with torch.no_grad():
            middle = net[0](x)
            change = [net[0].branch(x), net[1].branch(middle)] if residual else [middle - x, net[1](middle) - middle]
        expected = [np.median([float(c[i].norm() / at[i].norm()) for i in range(5)]) for c, at in zip(change, (x, middle), strict=True)]
        assert identity.branch_ratios(net, x) == pytest.approx(expected, rel=1e-5)


def test_maps() -> None:
    train, chooser, held = identity.maps(100, 50, 16, 0, "cpu")
    assert train.shape == (100, 16, 16, 16) and chooser.shape == held.shape == (50, 16, 16, 16)
    assert min(float(m.min()) for m in (train, chooser, held)) == 0
    assert not torch.equal(train, identity.maps(100, 50, 16, 1, "cpu")[0])
    both = torch.cat([train, chooser])
    # the positive half of a variable with mean 0 and variance 1
    assert ((both > 0).double().mean((0, 2, 3)) - 0.5).abs().max() < 0.25
    assert float(both.square().mean()) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_two_steps_by_hand(optimizer: str) -> None:
    """The same updates from the optimisers' formulas."""
    x = torch.rand(20, 4, 6, 6)
    how = RegressionConfig(optimizer, batch=4, weight_decay=0.01)
    torch.manual_seed(0)
    net = Units(UnitsConfig(1, norm="none", channels=4)).double()
    weights = {name: p.detach().clone() for name, p in net.named_parameters()}
    state: dict[str, Any] = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in weights.items()}
    generator = torch.Generator().manual_seed(9)
    twin = Units(UnitsConfig(1, norm="none", channels=4)).double()
    for step in (1, 2):
        rate = 0.02 * ((step - 0.5) / 2 / 0.25 if step == 1 else (1 - (step - 0.5) / 2) / 0.75)
        batch = x.double()[torch.randint(20, (4,), generator=generator)]
        loss = F.mse_loss(torch.func.functional_call(twin, {n: w.requires_grad_() for n, w in weights.items()}, batch), batch)
        gradients = torch.autograd.grad(loss, list(weights.values()))
        moved = {}
        for (name, w), g in zip(weights.items(), gradients, strict=True):
            w = w.detach()
            if optimizer == "adam":
                m, v = 0.9 * state[name][0] + 0.1 * g, 0.999 * state[name][1] + 0.001 * g**2
                state[name] = (m, v)
                moved[name] = w * (1 - rate * 0.01) - rate * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
            else:
                g = g + 0.01 * w
                m = g if step == 1 else 0.9 * state[name][0] + g
                state[name] = (m, m)
                moved[name] = w - rate * (g + 0.9 * m)
        weights = moved
    assert list(identity._steps(net, x.double(), how, 0.02, 2, 9)) == [1, 2]
    for name, p in net.named_parameters():
        torch.testing.assert_close(p.detach(), weights[name])


def test_learning() -> None:
    units = UnitsConfig(1)
    found = identity.learn(units, SMALL, 3)
    assert found == identity.learn(units, SMALL, 3) and found["error"] != identity.learn(units, SMALL, 4)["error"]
    assert found["step"][0] == 0 and found["step"][-1] == 20 and len(found["error_by_step"]) == 21
    assert found["error"] < 0.8 * found["error_by_step"][0]
    assert found["error"] == pytest.approx(found["error_by_step"][-1], rel=1e-5)  # 50 held out, all of them watched
    assert list(found["pilot"]) == ["0.001", "0.003", "0.01"] and found["lr"] == float(min(found["pilot"], key=found["pilot"].get))
    assert len(found["conv_norms"]) == 2 and found["largest_conv_norm"] == max(found["conv_norms"])
    assert len(found["branch_ratio"]) == len(found["last_scale"]) == len(found["shift"]) == 1
    assert "last_scale" not in identity.learn(UnitsConfig(1, norm="none"), SMALL, 3)


def test_norms_are_relative_to_the_start() -> None:
    still = RegressionConfig(steps=1, images=100, held_out=50, batch=8, rates=(1e-12,))
    found = identity.learn(UnitsConfig(2), still, 0)
    assert found["conv_norms"] == pytest.approx([1] * 4) and found["last_scale"] == pytest.approx([1, 1])
    assert found["pilot"] == {"1e-12": 0.0}  # a single rate is not tried
    assert found["branch_ratio_start"] == pytest.approx(found["branch_ratio"], rel=0.2)
    zero = identity.learn(UnitsConfig(1, norm="none", zero_last=True), still, 0)
    assert zero["conv_norms"][1] < 1e-9 and zero["branch_ratio"] == pytest.approx([0], abs=1e-9)


def test_rates_that_diverge() -> None:
    wild = RegressionConfig("sgd", steps=20, pilot_steps=20, images=100, held_out=50, batch=8, rates=(0.01, 1e9))
    found = identity.learn(UnitsConfig(4, norm="none"), wild, 0)
    assert found["lr"] == 0.01 and found["pilot"]["1e+09"] == math.inf
    with pytest.raises(Diverged):
        identity.learn(UnitsConfig(4, norm="none"), dataclasses.replace(wild, rates=(1e9, 1e10)), 0)


@pytest.mark.parametrize(
    "wrong",
    [lambda: UnitsConfig(0), lambda: UnitsConfig(norm="layer"), lambda: UnitsConfig(residual=False, zero_last=True)]
    + [lambda: RegressionConfig("adagrad"), lambda: RegressionConfig(steps=0), lambda: RegressionConfig(rates=(0.1, -1))],
)
def test_refusals(wrong: Any) -> None:
    with pytest.raises(Refused):
        wrong()
