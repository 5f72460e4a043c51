"""The variants of the residual block: the networks that exist already to the bit, the others against blocks written out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cnnstudy.config import Refused
from cnnstudy.models import ResNetConfig, VariantConfig, build
from cnnstudy.models.variants import ORDERS
from cnnstudy.probes import cost
from cnnstudy.probes.signal import block_gradients


def of_seed(cfg: Any, seed: int = 3) -> Any:
    torch.manual_seed(seed)
    return build(cfg)


def stirred(net: nn.Module) -> nn.Module:
    """With batch norms that do something in evaluation mode."""
    generator = torch.Generator().manual_seed(0)
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            for tensor in (m.running_mean, m.running_var, m.weight.data, m.bias.data):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
    return net.eval()


SAME = [
    ({}, {}),
    ({"order": "norm-act-conv"}, {"preact": True}),
    ({"shortcut": "B"}, {"shortcut": "B"}),
    ({"skip": False}, {"skip": False}),
    ({"init": "zero_branch"}, {"init": "zero_branch"}),
    ({"order": "norm-act-conv", "norm": "none", "act": "silu"}, {"preact": True, "norm": "none", "act": "silu"}),
]


@pytest.mark.parametrize(("mine", "theirs"), SAME)
def test_conformance_with_the_resnet(mine: dict[str, Any], theirs: dict[str, Any]) -> None:
    net, reference = of_seed(VariantConfig(14, 8, **mine)), of_seed(ResNetConfig(14, 8, **theirs))
    for (name, a), (other, b) in zip(net.state_dict().items(), reference.state_dict().items(), strict=True):
        assert name == other and torch.equal(a, b)  # the same weights for the same seed
    net.load_state_dict(stirred(reference).state_dict())
    x = torch.rand(3, 3, 32, 32)
    assert torch.equal(net.eval()(x), reference(x))
    net.train(), reference.train()
    assert torch.equal(net(x), reference(x))


def by_hand(order: str, block: Any, x: Tensor) -> Tensor:
    b = block.branch
    if order == "conv-act-norm":
        return x + b.norm2(b.conv2(b.norm1(b.conv1(x).relu())).relu())
    if order == "act-conv-norm":
        return x + b.norm2(b.conv2(b.norm1(b.conv1(x.relu())).relu()))
    if order == "conv-norm-act-inside":
        return x + b.norm2(b.conv2(b.norm1(b.conv1(x)).relu())).relu()
    if order == "norm-after-sum":
        return block.out.norm1(x + b.conv2(b.norm1(b.conv1(x)).relu())).relu()
    if order == "norm-act-conv":
        return x + b.conv2(b.norm2(b.conv1(b.norm1(x).relu())).relu())
    return (x + b.norm2(b.conv2(b.norm1(b.conv1(x)).relu()))).relu()


@pytest.mark.parametrize("order", ORDERS)
def test_blocks_by_hand(order: str) -> None:
    block = stirred(of_seed(VariantConfig(8, 4, order=order))).blocks()[0]
    x = torch.randn(2, 4, 6, 6)
    torch.testing.assert_close(block(x), by_hand(order, block, x))


@pytest.mark.parametrize("order", ORDERS)
def test_all_orders_have_equal_parts(order: str) -> None:
    """The same convolutions (weights too), as many norms, trainable from end to end."""
    net, reference = of_seed(VariantConfig(14, 8, order=order)), of_seed(ResNetConfig(14, 8))
    convs, others = ([m for m in n.modules() if isinstance(m, nn.Conv2d)] for n in (net, reference))
    assert all(torch.equal(a.weight, b.weight) for a, b in zip(convs, others, strict=True))
    assert cost.cost(net, 32)["macs"] == cost.cost(reference, 32)["macs"]
    assert sum(isinstance(m, nn.BatchNorm2d) for m in net.modules()) == 6 * 2 + 1  # two a block, one in the stem or before the head
    net(torch.rand(4, 3, 32, 32)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters())
    assert [len(stage) for stage in block_gradients(net, torch.rand(4, 3, 32, 32), torch.arange(4))] == [2, 2, 2]


def test_act_conv_norm_is_conv_norm_act_shifted_by_one() -> None:
    """Without shortcuts and with the first convolution in front both are one function: conv, norm, act, conv, norm, act, ..."""
    one, other = build(VariantConfig(8, 4, skip=False)), build(VariantConfig(8, 4, order="act-conv-norm", skip=False))
    other.load_state_dict(stirred(one).state_dict())
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(other.eval()(x), one(x), rtol=0, atol=0)
    bare = build(VariantConfig(8, 4, order="act-conv-norm", skip=False, plain_stem=False))
    bare.load_state_dict(one.state_dict())
    z = one.normalize(x)
    torch.testing.assert_close(bare.eval()(x), one(one.normalize.mean + z.relu() * one.normalize.std))  # as if the image were rectified


OPERATIONS = {
    "norm": lambda m, x: (x - m.running_mean[:, None, None]) / (m.running_var[:, None, None] + m.eps).sqrt() * m.weight[:, None, None]
    + m.bias[:, None, None],
    "relu": lambda m, x: x.clamp(min=0),
    "half": lambda m, x: x / 2,
    "conv": lambda m, x: torch.einsum("oi,nihw->nohw", m.weight[:, :, 0, 0], x),
    "identity": lambda m, x: x,
}


@pytest.mark.parametrize("order", ["conv-norm-act", "norm-act-conv"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_operations_stand_on_every_identity_shortcut_and_nowhere_else(operation: str, order: str) -> None:
    net = stirred(of_seed(VariantConfig(14, 4, on_shortcut=operation, order=order)))
    plain = of_seed(VariantConfig(14, 4, order=order))
    for block, other in zip(net.blocks(), plain.blocks(), strict=True):
        c = block.branch.conv1.in_channels
        x = torch.randn(2, c, 8, 8)
        if c == block.branch.conv1.out_channels:
            expected = block.out(block.branch(x) + OPERATIONS[operation](block.shortcut, x))
            torch.testing.assert_close(block(x), expected)
        else:
            assert type(block.shortcut) is type(other.shortcut)
    assert len(net.blocks()) == 6


def test_biases_are_added_to_the_same_weights() -> None:
    net, without = of_seed(VariantConfig(14, 8, bias=True)), of_seed(VariantConfig(14, 8))
    extra = net.state_dict().keys() - without.state_dict().keys()
    assert len(extra) == 13 and all(name.endswith("bias") and not net.state_dict()[name].any() for name in extra)
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in without.state_dict().items())
    assert {n for n, _ in net.named_parameters()} >= extra


@pytest.mark.parametrize(
    "wrong",
    [
        {"depth": 21}, {"width": 0}, {"order": "conv"}, {"on_shortcut": "tanh"}, {"skip": False, "on_shortcut": "relu"},
        {"norm": "none", "on_shortcut": "norm"}, {"plain_stem": False}, {"skip": False, "init": "zero_branch"}, {"init": "?"},
    ],
)  # fmt: skip
def test_refusals(wrong: dict[str, Any]) -> None:
    with pytest.raises(Refused):
        VariantConfig(**wrong)
