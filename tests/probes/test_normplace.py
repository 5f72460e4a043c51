"""What follows each convolution, what a bias in front of batch norm does, and what a shifted order changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from cnnstudy.config import Refused
from cnnstudy.layers import SqueezeExcite
from cnnstudy.models import ChainConfig, VariantConfig
from cnnstudy.models.zoo import ZooConfig
from cnnstudy.probes import normplace


class Net(nn.Module):
    """The convolutions in the order given, one after another."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def counts(*layers: nn.Module) -> dict[str, int]:
    found = normplace.census(Net(*layers), 8)
    return {name: found[name] for name in ("norm_act", "norm", "act_norm", "act", "bare") if found[name]}


def test_a_convolution_is_known_by_what_follows() -> None:
    def conv() -> nn.Conv2d:
        return nn.Conv2d(3, 3, 3, padding=1)

    norm, act = nn.BatchNorm2d(3), nn.ReLU()
    assert counts(conv(), norm, act) == {"norm_act": 1}
    assert counts(conv(), act, norm) == {"act_norm": 1}
    assert counts(conv(), norm, conv(), act, nn.MaxPool2d(2), conv()) == {"norm": 1, "act": 1, "bare": 1}


def test_gates_on_pooled_maps_have_no_order() -> None:
    found = normplace.census(Net(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), SqueezeExcite(8, 2, "relu")), 8)
    assert (found["convs"], found["pooled"], found["compatible"]) == (1, 2, True)


def test_the_orders_of_the_chain_are_told_apart() -> None:
    found = {order: normplace.census(ChainConfig(8, 4, 1, order=order), 8) for order in ("conv-norm-act", "conv-act-norm", "norm-act-conv")}
    assert [found[order]["norm_act"] for order in found] == [8, 0, 7]
    assert [found[order]["act_norm"] for order in found] == [0, 8, 0]
    assert found["norm-act-conv"]["bare"] == 1
    assert [found[order]["compatible"] for order in found] == [True, False, False]


def test_biases_in_front_of_a_norm_are_counted() -> None:
    assert normplace.census(VariantConfig(8), 32)["unbiased"]
    vgg = normplace.census(ZooConfig("vgg11_bn"), 224)
    assert (vgg["normed"], vgg["biased"], vgg["wasted"]) == (8, 8, 64 + 128 + 2 * 256 + 4 * 512)


@pytest.mark.parametrize("padding", ["zeros", "circular"])
def test_a_bias_is_cancelled_by_the_batchs_mean_alone(padding: str) -> None:
    found = {state: normplace.bias_cancellation(state, padding) for state in normplace.STATES}
    assert max(found["training"].values()) < 1e-12
    assert min(*found["frozen"].values(), *found["evaluation"].values()) > 1e-3
    assert found["evaluation, absorbed"]["output_change"] < 1e-12 < found["evaluation, absorbed"]["gradient_ratio"]


def test_an_unknown_state_is_refused() -> None:
    with pytest.raises(Refused, match="state"):
        normplace.bias_cancellation("asleep")


def test_the_shifted_stack_is_the_same_once_its_ends_are_mended() -> None:
    cfg, x = ChainConfig(4, 4, 2), torch.rand(8, 3, 16, 16)
    both = [("conv-norm", "act"), ("conv-norm", "none"), ("none", "act")]
    found = {ends: normplace.shifted(cfg, *ends, x)["difference"] for ends in both}
    assert found["conv-norm", "act"] == 0
    assert min(found["conv-norm", "none"], found["none", "act"]) > 0.1


def test_channels_are_normal_before_scale_and_shift() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4)
    net = Net(nn.Conv2d(3, 4, 3), norm).double()
    with torch.no_grad():
        norm.weight.fill_(2.0)
        norm.bias.fill_(1.0)
    x = torch.rand(16, 3, 8, 8, dtype=torch.float64)
    trained, stored = normplace.channels(net, x, train=True), normplace.channels(net, x, train=False)
    assert np.abs(trained["before_mean"]).max() < 1e-9
    assert np.abs(trained["before_std"] - 1).max() < 1e-2
    assert trained["mean"] == pytest.approx(1.0, abs=1e-9)
    assert trained["std"] == pytest.approx(2 * trained["before_std"])
    assert np.abs(stored["before_std"] - 1).min() > 0.1  # fresh statistics fit nothing
    assert stored["mean"] == pytest.approx(2 * stored["before_mean"] + 1)
    assert float(norm.running_mean.abs().max()) == 0  # type: ignore[union-attr]


def test_the_share_of_normal_channels() -> None:
    found = normplace.normal_share(np.array([0.0, 0.02, 0.0, -0.005]), np.array([1.0, 1.0, 1.05, 0.995]))
    assert found["share"] == 0.5
    assert (found["worst_mean"], found["worst_std"]) == (0.02, pytest.approx(0.05))
