"""A chain of convolutions: its shape, the order in which its parts are called, its initial weights."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import nn

from cnnstudy.config import canonical
from cnnstudy.models import ChainConfig, ResNetConfig, build
from cnnstudy.models.chain import ACTIVATION, activation, spread
from cnnstudy.models.inits import INIT, draw
from cnnstudy.probes.gradients import spatial_convs
from cnnstudy.probes.signal import block_gradients


def made(cfg: ChainConfig, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build(cfg)


def calls(model: nn.Module) -> list[str]:
    """What is called on an image, by type, in the order of execution (fx follows the data)."""
    names = {nn.Conv2d: "conv", nn.BatchNorm2d: "norm", nn.ReLU: "act", nn.MaxPool2d: "pool"}
    modules = dict(model.named_modules())
    nodes = torch.fx.symbolic_trace(model).graph.nodes
    return [names[type(modules[n.target])] for n in nodes if n.op == "call_module" and type(modules[n.target]) in names]


def convs(model: nn.Module) -> list[nn.Conv2d]:
    return list(spatial_convs(model).values())


@pytest.mark.parametrize(
    ("depth", "stages", "counts"),
    [(8, 5, [1, 1, 2, 2, 2]), (13, 5, [2, 2, 3, 3, 3]), (6, 3, [2, 2, 2]), (8, 3, [2, 3, 3]), (40, 1, [40])],
)
def test_stages(depth: int, stages: int, counts: list[int]) -> None:
    assert spread(depth, stages) == counts
    model = made(ChainConfig(depth=depth, stages=stages, width=4))
    assert [len(stage) for stage in model.stages] == counts
    assert len(model.layers()) == len(convs(model)) == depth
    assert [len(stage) for stage in block_gradients(model, torch.rand(2, 3, 32, 32), torch.tensor([0, 1]))] == counts


def test_shapes_of_vgg_and_of_a_flat_chain() -> None:
    vgg = made(ChainConfig(depth=8, stages=5, width=8, kernel=7))
    assert [c.out_channels for c in convs(vgg)] == [8, 16, 32, 32, 64, 64, 64, 64]  # at most eight times the width
    assert [c.kernel_size[0] for c in convs(vgg)] == [7] + [3] * 7
    assert vgg.maps(torch.rand(1, 3, 32, 32)).shape == (1, 64, 2, 2)
    flat = made(ChainConfig(depth=5, stages=1, width=8, stride=4))
    assert [(c.in_channels, c.out_channels, c.stride) for c in convs(flat)] == [(3, 8, (4, 4))] + [(8, 8, (1, 1))] * 4
    assert flat.maps(torch.rand(1, 3, 32, 32)).shape == (1, 8, 8, 8)
    assert {c.out_channels for c in convs(made(ChainConfig(width=8, growth=1)))} == {8}


@pytest.mark.parametrize("order", ["conv-norm-act", "conv-act-norm", "act-conv-norm", "norm-act-conv"])
def test_order_of_execution(order: str) -> None:
    parts = order.split("-")
    cfg = ChainConfig(depth=4, stages=2, width=4, order=order)
    assert calls(made(cfg)) == parts * 2 + ["pool"] + parts * 2
    fronted = dataclasses.replace(cfg, front="conv", final="act")
    assert calls(made(fronted)) == ["conv", *parts, "pool", *parts, *parts, "act"]
    both = dataclasses.replace(cfg, front="conv-norm", final="norm-act")
    assert calls(made(both)) == ["conv", "norm", *parts, "pool", *parts, *parts, "norm", "act"]
    assert calls(made(dataclasses.replace(cfg, norm="none"))) == [p for p in parts * 2 + ["pool"] + parts * 2 if p != "norm"]


def test_a_front_takes_the_place_of_the_first_layer() -> None:
    model = made(ChainConfig(depth=8, stages=5, width=4, front="conv"))
    assert len(convs(model)) == 8 and list(model.layers())[:2] == ["stem", "stages.0.0"]
    assert [c.out_channels for c in convs(model)] == [4, 8, 16, 16, 32, 32, 32, 32]
    assert calls(model)[:2] == ["conv", "pool"]


def test_the_shifted_stack_is_the_same_function() -> None:
    x = torch.rand(4, 3, 32, 32, dtype=torch.float64)
    base = made(ChainConfig(depth=8, stages=3, width=4)).double()
    for shifted, same in (("act", True), ("none", False)):
        twin = made(ChainConfig(depth=8, stages=3, width=4, order="act-conv-norm", front="conv-norm", final=shifted), seed=1).double()
        pairs = list(zip(base.parameters(), twin.parameters(), strict=True))
        assert all(a.shape == b.shape for a, b in pairs)
        with torch.no_grad():
            for a, b in pairs:
                b.copy_(a)
            assert torch.allclose(base(x), twin(x), rtol=1e-12, atol=1e-12) is same
            torch.testing.assert_close(base.maps(x), twin.maps(x).relu())


@pytest.mark.parametrize(
    ("order", "norm", "front", "expected"),
    [
        ("conv-norm-act", "batch", "none", [False, False, False]),
        ("conv-act-norm", "batch", "none", [True, True, True]),
        ("act-conv-norm", "batch", "conv", [True, False, False]),
        ("act-conv-norm", "batch", "conv-norm", [False, False, False]),
        ("norm-act-conv", "batch", "conv", [False, False, False]),
        ("norm-act-conv", "none", "conv", [True, True, True]),
    ],
)
def test_biases_are_where_no_norm_follows(order: str, norm: str, front: str, expected: list[bool]) -> None:
    cfg = ChainConfig(depth=3, stages=1, width=4, order=order, norm=norm, front=front)
    assert [c.bias is not None for c in convs(made(cfg))] == expected
    for bias in ("on", "off"):
        assert {c.bias is not None for c in convs(made(dataclasses.replace(cfg, bias=bias)))} == {bias == "on"}


def test_skip_adds_the_identity_and_changes_nothing_else() -> None:
    cfg = ChainConfig(depth=4, stages=2, width=4, act="tanh", norm="none")
    plain, skip = made(cfg), made(dataclasses.replace(cfg, skip=True))
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), skip.parameters(), strict=True))
    x = torch.rand(2, 4, 8, 8)
    first, second = skip.stages[0]  # the first sees 3 channels
    assert torch.equal(second(x), x + plain.stages[0][1](x))
    assert not first.skip and [layer.skip for layer in skip.stages[1]] == [False, True]


def test_activations() -> None:
    x = torch.tensor([-2.0, -0.5, 0.0, 1.0, 7.0])
    by_hand = {
        "relu": [0, 0, 0, 1, 7],
        "leaky": [-0.4, -0.1, 0, 1, 7],
        "relu6": [0, 0, 0, 1, 6],
        "identity": [-2, -0.5, 0, 1, 7],
        "sigmoid": [1 / (1 + math.exp(-float(v))) for v in x],
        "tanh": [math.tanh(float(v)) for v in x],
        "silu": [float(v) / (1 + math.exp(-float(v))) for v in x],
        "hardswish": [-2 / 6, -0.5 * 2.5 / 6, 0, 4 / 6, 7],
        "gelu": [float(v) * 0.5 * (1 + math.erf(float(v) / math.sqrt(2))) for v in x],
    }
    assert set(by_hand) == set(ACTIVATION)
    for act, values in by_hand.items():
        torch.testing.assert_close(activation(act, 0.2)(x), torch.tensor(values, dtype=torch.float32))
        model = made(ChainConfig(depth=2, stages=1, width=4, act=act))
        assert type(model.stages[0][0].body.act) is type(activation(act))
    assert made(ChainConfig(act="leaky", slope=0.3, width=4)).stages[0][0].body.act.negative_slope == 0.3
    assert "slope" not in canonical(ChainConfig()) and canonical(ChainConfig(act="leaky", slope=0.3))["slope"] == 0.3


# variance of the weights of a 3x3 convolution from 64 to 128 channels
VARIANCE = {
    "he": 2 / 576,
    "he_fan_out": 2 / 1152,
    "xavier": 2 / (576 + 1152),
    "lecun": 1 / 576,
    "framework": 1 / (3 * 576),
    "orthogonal": 2 / 576,
    "normal": 1e-4,
    "delta_orthogonal": 2 * 64 / (128 * 64 * 9),  # 64 orthonormal columns in 128 x 64 x 9 numbers, times sqrt(2)
    "parallel": 2 / 576,
}


@pytest.mark.parametrize("init", INIT)
def test_variance_of_the_weights(init: str) -> None:
    model = made(ChainConfig(depth=3, stages=2, width=64, norm="none", init=init, gain=1.5))
    weight = convs(model)[1].weight.detach()
    assert weight.shape == (128, 64, 3, 3)
    tolerance = 0.15 if init == "parallel" else 0.02  # one shared vector of 576 numbers
    assert float(weight.square().mean()) == pytest.approx(2.25 * VARIANCE[init], rel=tolerance)
    assert abs(float(weight.mean())) < 4 * math.sqrt(2.25 * VARIANCE[init] / (576 if init == "parallel" else weight.numel()))
    bias = convs(model)[1].bias.detach()
    assert bool(bias.any()) is (init == "framework")
    if init == "framework":
        assert float(bias.var()) == pytest.approx(1 / (3 * 576), rel=0.3) and float(bias.abs().max()) <= 1 / 24


def test_units_of_parallel_weights_are_nearly_parallel() -> None:
    weight = torch.empty(32, 16, 3, 3)
    INIT["parallel"](weight)
    cosine = torch.corrcoef(weight.flatten(1)).abs()
    assert float(cosine.min()) > 0.95 and float(cosine.mean()) < 0.9999
    assert len(set(torch.sign(weight[:, 0, 0, 0]).tolist())) == 2


def test_draw_redraws_any_network() -> None:
    model = build(ResNetConfig(depth=8))
    head = model.head.weight.clone()
    assert draw(model, "lecun", 3.0) is model
    assert float(model.stages[2][0].branch.conv2.weight.detach().var()) == pytest.approx(9 / 576, rel=0.03)
    assert torch.equal(model.head.weight, head)
    draw(model, "normal")
    assert float(model.head.weight.detach().std()) == pytest.approx(0.01, rel=0.2)


def test_the_head_is_the_same_whatever_the_gain() -> None:
    heads = [made(ChainConfig(width=4, init=init)).head.weight.detach().abs().max() for init in ("he", "lecun", "framework")]
    assert all(0 < float(h) <= 1 / math.sqrt(16) for h in heads)
    assert torch.equal(made(ChainConfig(width=4, gain=9.0)).head.weight, made(ChainConfig(width=4)).head.weight)


def test_40_sigmoid_layers_in_double_precision_have_gradients_everywhere() -> None:
    model = made(ChainConfig(depth=40, stages=1, width=8, stride=4, act="sigmoid", norm="none", init="xavier")).double()
    model(torch.rand(2, 3, 32, 32, dtype=torch.float64)).logsumexp(1).sum().backward()
    norms = [float(c.weight.grad.norm()) for c in convs(model)]
    assert 0 < norms[0] < 1e-12 * norms[-1]
