"""Conformance: what every registered family must do, whatever it is."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from cnnstudy.config import Refused, canonical
from cnnstudy.models import (
    REGISTRY,
    EfficientNetConfig,
    ImageNetConfig,
    MobileNetV2Config,
    ResNetConfig,
    VggConfig,
    build,
)


def inverted(c_in: int, c_out: int, t: int, k: int = 3, se: int = 0) -> int:
    """Parameters of an inverted residual by MobileNetV2's table 1; two per channel and batch norm."""
    h = c_in * t
    expand = 0 if t == 1 else c_in * h + 2 * h
    gate = h * se + se + se * h + h if se else 0
    return expand + k * k * h + 2 * h + gate + h * c_out + 2 * c_out


MOBILE = [(16, 16, 1), (16, 24, 4), (24, 24, 4), (24, 32, 4), (32, 32, 4), (32, 32, 4), (32, 64, 4)]
MOBILE += [(64, 64, 4), (64, 64, 4), (64, 96, 4), (96, 96, 4)]
EFFICIENT = [(16, 16, 1, 3, 4), (16, 24, 4, 3, 4), (24, 24, 4, 3, 6), (24, 40, 4, 5, 6), (40, 40, 4, 5, 10)]
EFFICIENT += [(40, 64, 4, 3, 10), (64, 64, 4, 3, 16), (64, 96, 4, 5, 16), (96, 96, 4, 5, 24)]
STEM, LAST, HEAD = 3 * 16 * 9 + 2 * 16, 96 * 256 + 2 * 256, 256 * 10 + 10

# config, parameters from somewhere else than this package
CASES: list[tuple[Any, int]] = [
    # He et al. 2016, table 6 prints 0.27, 0.46, 0.66, 0.85 and 1.7 M; to the digit, e.g. for depth 20, by hand:
    # 9 (3*16 + 6*16*16 + 16*32 + 5*32*32 + 32*64 + 5*64*64) + 2 (7*16 + 6*32 + 6*64) + 64*10 + 10
    (ResNetConfig(), 269_722),
    (ResNetConfig(depth=32), 464_154),
    (ResNetConfig(depth=44), 658_586),
    (ResNetConfig(depth=56), 853_018),
    (ResNetConfig(depth=110), 1_727_962),
    (ResNetConfig(skip=False), 269_722),  # shortcuts "A" have no parameters
    (ResNetConfig(shortcut="B"), 272_474),  # + 16*32 + 2*32 + 32*64 + 2*64
    # no norm in the stem, two before the change of width (16, 32) instead of after it, one more at the end
    (ResNetConfig(preact=True), 269_722 - 2 * 16 - 2 * (16 + 32) + 2 * 64),
    (ResNetConfig(norm="none"), 269_722 - 688),  # 688 scales less; the 688 biases move to the convolutions
    (ResNetConfig(depth=8, act="silu", init="delta_orthogonal"), 9 * (48 + 512 + 512 + 1024 + 2048 + 4096) + 480 + 650),
    (ResNetConfig(init="zero_branch"), 269_722),
    (ResNetConfig(init="scaled_branch", norm="none", preact=True), 269_722 - 688),
    # each of the 18 blocks' 3x3: 9 c_in + c_in c_out + a norm of c_in; stem, the other norms and the head as above
    (ResNetConfig(separable=True), 39_018),
    (VggConfig(), 9 * (3 * 32 + 32 * 32 + 32 * 64 + 64 * 64 + 64 * 128 + 128 * 128) + 4 * 224 + 1_290),
    (VggConfig(norm="none"), 9 * (3 * 32 + 32 * 32 + 32 * 64 + 64 * 64 + 64 * 128 + 128 * 128) + 2 * 224 + 1_290),
    (VggConfig(width=0.5), 9 * (3 * 16 + 16 * 16 + 16 * 32 + 32 * 32 + 32 * 64 + 64 * 64) + 4 * 112 + 650),
    (MobileNetV2Config(), STEM + sum(inverted(*row) for row in MOBILE) + LAST + HEAD),
    # dense: 9 h h instead of 9 h for each hidden width h
    (
        MobileNetV2Config(separable=False),
        STEM + sum(inverted(*r) + 9 * (r[0] * r[2]) * (r[0] * r[2] - 1) for r in MOBILE) + LAST + HEAD,
    ),
    (EfficientNetConfig(), STEM + sum(inverted(*row) for row in EFFICIENT) + LAST + HEAD),
    (EfficientNetConfig(se=False), STEM + sum(inverted(*row[:4]) for row in EFFICIENT) + LAST + HEAD),
    # torchvision's documentation, num_params of each model
    (ImageNetConfig("resnet18"), 11_689_512),
    (ImageNetConfig("mobilenetv2_100"), 3_504_872),
    (ImageNetConfig("mobilenetv3_large_100"), 5_483_032),
    (ImageNetConfig("efficientnet_b0"), 5_288_548),
]
SMALL = [(cfg, params) for cfg, params in CASES if not isinstance(cfg, ImageNetConfig)]


def name(value: Any) -> str:
    """A short test id: the class and what differs from its defaults."""
    if isinstance(value, int):
        return ""
    values = [(f.name, getattr(value, f.name), f.default) for f in dataclasses.fields(value)]
    return "-".join([type(value).__name__, *(f"{n}={v}" for n, v, default in values if v != default)])


def made(cfg: Any, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build(cfg)


def images(cfg: Any, n: int = 3) -> torch.Tensor:
    size = 64 if isinstance(cfg, ImageNetConfig) else 32
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(1))


def test_every_family_is_tried() -> None:
    assert {type(cfg) for cfg, _ in CASES} == set(REGISTRY)


@pytest.mark.parametrize(("cfg", "params"), CASES, ids=name)
def test_conforms(cfg: Any, params: int) -> None:
    model, x = made(cfg), images(cfg)
    assert model.training
    assert sum(p.numel() for p in model.parameters()) == params
    before = {k: v.clone() for k, v in model.state_dict().items()}

    # gradients reach every parameter, shapes are right, nothing overflows
    logits = model(x)
    assert logits.shape == (3, cfg.classes)
    assert logits.isfinite().all()
    torch.nn.functional.cross_entropy(logits, torch.tensor([1, 2, 3])).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []

    # the same seed gives the same weights and the same outputs, in both modes; another seed does not
    twin = made(cfg)
    assert all(torch.equal(before[k], v) for k, v in twin.state_dict().items())
    assert torch.equal(twin(x), logits)
    with torch.no_grad():
        assert torch.equal(model.eval()(x), twin.eval()(x))
        assert torch.equal(twin(x), twin(x))
    assert not torch.equal(next(made(cfg, seed=1).parameters()), before[next(iter(before))])

    # the config survives its canonical form
    form = canonical(cfg)
    assert REGISTRY[type(cfg)] and form.pop("kind") + "Config" == type(cfg).__name__
    assert type(cfg)(**form) == cfg


@pytest.mark.parametrize(("cfg", "params"), SMALL, ids=name)
def test_small_network(cfg: Any, params: int) -> None:
    """For 32 x 32: normalisation first, pooled features, other image sizes, double precision, torch.fx."""
    model, x = made(cfg).eval(), images(cfg)
    assert next(iter(model.children())) is model.normalize
    features = model.features(x)
    assert features.shape == (3, model.head.in_features)
    torch.testing.assert_close(model.head(features), model(x))
    assert model(torch.rand(1, 3, 40, 40)).shape == (1, cfg.classes)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), model(x))
    torch.testing.assert_close(model.double()(x.double()).float(), made(cfg).eval()(x), rtol=1e-3, atol=1e-3)


def zero_gradients(cfg: Any) -> list[str]:
    model = made(cfg)
    model(images(cfg)).logsumexp(1).sum().backward()
    return [n for n, p in model.named_parameters() if not p.grad.any()]


@pytest.mark.parametrize("cfg", [ResNetConfig(), VggConfig(), MobileNetV2Config(), EfficientNetConfig()], ids=name)
def test_gradients_are_not_zero(cfg: Any) -> None:
    assert zero_gradients(cfg) == []


def test_zero_branch_silences_all_but_the_last_norm() -> None:
    silent = zero_gradients(ResNetConfig(depth=8, init="zero_branch"))
    assert silent and all(".branch." in n and ".norm2." not in n for n in silent)


@pytest.mark.parametrize(
    ("config", "fields", "message"),
    [
        (ResNetConfig, {"depth": 21}, "depth 21 .*6n \\+ 2"),
        (ResNetConfig, {"depth": 2}, "depth 2 "),
        (ResNetConfig, {"width": 0}, "width 0"),
        (ResNetConfig, {"norm": "batchnorm"}, "unknown norm 'batchnorm'.*batch, none"),
        (ResNetConfig, {"act": "x"}, "unknown act"),
        (ResNetConfig, {"shortcut": "C"}, "unknown shortcut 'C'; valid: A, B"),
        (ResNetConfig, {"init": "xavier"}, "unknown init.*he, delta_orthogonal"),
        (ResNetConfig, {"init": "zero_branch", "skip": False}, "skip is false"),
        (ResNetConfig, {"separable": True, "norm": "none"}, "separable needs norm"),
        (VggConfig, {"width": 0.0}, "width 0.0"),
        (VggConfig, {"init": "zero_branch"}, "unknown init"),
        (VggConfig, {"classes": 0}, "classes 0"),
        (MobileNetV2Config, {"width": -1.0}, "width -1"),
        (EfficientNetConfig, {"act": "swish"}, "unknown act 'swish'"),
    ],
)
def test_refuses_in_one_line(config: Any, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(Refused, match=message) as caught:
        config(**fields)
    assert "\n" not in str(caught.value)


def test_build_refuses_what_is_no_config() -> None:
    with pytest.raises(Refused, match="given a dict; valid: ResNetConfig"):
        build({"depth": 20})


def test_very_deep_networks_build() -> None:
    model = made(ResNetConfig(depth=302, width=4)).eval()
    assert len(model.blocks()) == 150
    with torch.no_grad():
        assert model(torch.rand(1, 3, 32, 32)).isfinite().all()
