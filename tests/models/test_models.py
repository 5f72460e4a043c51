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
    BottleneckConfig,
    ChainConfig,
    CounterfactualConfig,
    DeepVggConfig,
    DenseConfig,
    EfficientNetConfig,
    ImageNetConfig,
    MobileNetV1Config,
    MobileNetV2Config,
    ResNetConfig,
    ShuffleConfig,
    ShuffleNetConfig,
    StackConfig,
    VariantConfig,
    VggConfig,
    WideConfig,
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


def bottlenecks(n: int, w: int, paths: int, each: int, projection: bool = True) -> int:
    """Parameters of three stages of ``n`` bottlenecks, stem and head: each path's 3x3 has its own ``each`` channels."""
    count, c_in = 27 * w + 2 * w, w
    for d, c_out in ((each, 4 * w), (2 * each, 8 * w), (4 * each, 16 * w)):
        count += n * (paths * (9 * d * d + d * c_out + 4 * d) + 2 * c_out) + paths * d * (c_in + (n - 1) * c_out)
        count += (c_in * c_out + 2 * c_out) * projection
        c_in = c_out
    return count + c_in * 10 + 10


def wide(n: int, k: int) -> int:
    """Parameters of WRN-(6n+4)-k: two 3x3 a block, a norm before each, bare 1x1 where the width changes."""
    count, c_in = 27 * 16, 16
    for c in (16 * k, 32 * k, 64 * k):
        count += 9 * c_in * c + (2 * n - 1) * 9 * c * c + 2 * (c_in + (2 * n - 1) * c) + (c_in * c if c_in != c else 0)
        c_in = c
    return count + 2 * c_in + c_in * 10 + 10


def preact_bottlenecks(n: int, k: int) -> int:
    """Parameters of pre-activation bottlenecks: 1x1, 3x3, 1x1, a norm before each, bare 1x1 where the width changes."""
    count, c_in = 27 * 16, 16
    for c in (16 * k, 32 * k, 64 * k):
        for before in [c_in] + [4 * c] * (n - 1):
            count += 2 * before + before * c + 2 * c + 9 * c * c + 2 * c + 4 * c * c
        count, c_in = count + c_in * 4 * c, 4 * c
    return count + 2 * c_in + c_in * 10 + 10


def vgg_body(convs: int, norm: int, w: int = 1) -> int:
    """Parameters of VGG's convolutions at 1/w of the width: 13 or 16 of them; a scale and a shift each, or a bias."""
    more = (convs - 13) // 3  # one more in each of the last three blocks
    pairs = [(3 * w, 64), (64, 64), (64, 128), (128, 128), (128, 256)] + [(256, 256)] * (2 + more)
    pairs += [(256, 512)] + [(512, 512)] * (5 + 2 * more)
    assert len(pairs) == convs
    return sum(9 * (a // w) * (b // w) + norm * (b // w) for a, b in pairs)


V1 = [(32, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 512), *[(512, 512)] * 5, (512, 1024), (1024, 1024)]


def mobilenet_v1(layers: list[tuple[int, int]], separable: bool = True) -> int:
    def layer(a: int, b: int) -> int:
        return 9 * a + 2 * a + a * b + 2 * b if separable else 9 * a * b + 2 * b

    return 27 * layers[0][0] + 2 * layers[0][0] + sum(layer(a, b) for a, b in layers) + layers[-1][1] * 10 + 10


def shuffle_net(g: int, channels: int, units: tuple[int, ...], stem: int = 24, classes: int = 10) -> int:
    """Parameters of a ShuffleNet whose unit has a quarter of its channels inside."""
    count, c_in = 27 * stem + 2 * stem, stem
    for i, n in enumerate(units):
        c = channels * 2**i
        m = c // 4
        inside = 2 * m + 9 * m + 2 * m  # a norm, the depthwise, its norm
        count += c_in * m // (g if i else 1) + inside + m * (c - c_in) // g + 2 * (c - c_in)
        count += (n - 1) * (2 * c * m // g + inside + 2 * c)
        c_in = c
    return count + c_in * classes + classes


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
    (BottleneckConfig(), bottlenecks(3, 16, 1, 16)),
    (BottleneckConfig(20, 13, 1, 20), bottlenecks(2, 13, 1, 20)),
    (BottleneckConfig(29, 16, 4, 6), bottlenecks(3, 16, 4, 6)),
    (BottleneckConfig(11, 8, 16, 2, "A"), bottlenecks(1, 8, 16, 2, projection=False)),
    # Zagoruyko & Komodakis 2016, table 5, prints 0.6, 2.2, 8.9, 11.0, 36.5 M (tests/models/test_wide.py)
    (WideConfig(), wide(2, 2)),
    (WideConfig(10, 1), wide(1, 1)),
    (WideConfig(40, 1), wide(6, 1)),
    (WideConfig(20, 2, bottleneck=True), preact_bottlenecks(2, 2)),
    (DeepVggConfig(width=0.25), vgg_body(13, 2, 4) + 1_290),
    (DeepVggConfig(19, 0.25, norm="none"), vgg_body(16, 1, 4) + 1_290),
    (DeepVggConfig(16, 0.125, head="fc"), vgg_body(13, 2, 8) + 64 * 512 + 512 + 512 * 512 + 512 + 5_130),
    (DeepVggConfig(16, 0.125, head="fc", last_pool=False), vgg_body(13, 2, 8) + 256 * 512 + 512 + 512 * 512 + 512 + 5_130),
    (DeepVggConfig(width=0.125, last_pool=False), vgg_body(13, 2, 8) + 650),
    # tests/models/test_dense.py adds up the layers
    (VariantConfig(), 269_722),  # the original, with option A
    # three blocks: norms before none but after each convolution; a bare 1x1 on the identity shortcut, 1x1 and norm on the others
    (
        VariantConfig(8, order="act-conv-norm", on_shortcut="conv", shortcut="B"),
        (27 * 16 + 32) + (18 * 256 + 64 + 256) + (9 * 512 + 9 * 1024 + 128 + 512 + 64) + (9 * 2048 + 9 * 4096 + 256 + 2048 + 128) + 650,
    ),
    (DenseConfig(22), 71_686),
    (DenseConfig(40), 176_122),
    # stem; a block of one layer each: norm and 3x3 of 16, 24, 32 channels; transitions that keep all; final norm and head
    (DenseConfig(7, 8, bottleneck=False, compression=1.0), 27 * 16 + 74 * (16 + 24 + 32) + 2 * (24 + 32) + 24 * 24 + 32 * 32 + 80 + 410),
    # plain twin, one layer of 1x1 to 8 and 3x3 to 4 a block (8, 4, 4 channels in), transitions 4 to 4
    (DenseConfig(10, 4, compression=1.0, window=1, inner=8), 27 * 8 + 10 * (8 + 4 + 4) + 3 * (16 + 288) + 2 * (8 + 16) + 8 + 50),
    # the stem, then 9 (27) or 49 C^2 weights in each of three stages, two norm parameters per channel and layer
    (StackConfig(), 27 * 16 + 32 + 3 * (27 * 16 * 16 + 6 * 16) + 170),
    (StackConfig("7"), 27 * 16 + 32 + 3 * (49 * 16 * 16 + 2 * 16) + 170),
    (StackConfig("3-3", 8, inner_act=False), 27 * 8 + 16 + 3 * (18 * 64 + 32) + 90),
    (
        StackConfig("11/5/3-3-3", 8, growth=2, stem=False),
        121 * 3 * 8 + 16 + 25 * 8 * 16 + 32 + 9 * (16 * 32 + 2 * 32 * 32) + 6 * 32 + 330,
    ),
    # by hand: 9 c_in c_out a layer, two norm parameters a channel (without norm one bias); depth 8 over three stages is 2-3-3
    (ChainConfig(width=8), 9 * (24 + 64 + 128 + 2 * 256 + 512 + 2 * 1024) + 2 * (2 * 8 + 3 * 16 + 3 * 32) + 330),
    (ChainConfig(depth=5, width=8, stages=1, norm="none", act="tanh", stride=4, skip=True), 27 * 8 + 4 * 9 * 64 + 5 * 8 + 90),
    (ChainConfig(depth=8, width=4, stages=5, kernel=7, bias="on"), 49 * 12 + 9 * (32 + 128 + 256 + 512 + 3 * 1024) + 3 * 172 + 330),
    (ChainConfig(3, 8, 1, order="norm-act-conv", front="conv", final="norm-act"), 27 * 8 + 2 * 9 * 64 + 2 * 24 + 90),
    (ChainConfig(depth=3, width=8, stages=1, order="act-conv-norm", front="conv-norm", act="sigmoid"), 27 * 8 + 2 * 9 * 64 + 2 * 24 + 90),
    (ChainConfig(depth=3, width=8, stages=1, order="conv-act-norm", front="conv"), 27 * 8 + 2 * 9 * 64 + 3 * 8 + 2 * 16 + 90),
    (MobileNetV1Config(), mobilenet_v1(V1)),
    (MobileNetV1Config(0.25), mobilenet_v1([(a // 4, b // 4) for a, b in V1])),
    (MobileNetV1Config(0.25, separable=False), mobilenet_v1([(a // 4, b // 4) for a, b in V1], separable=False)),
    (MobileNetV1Config(0.5, blocks=(1, 1, 1, 2, 1)), mobilenet_v1([(16, 32), (32, 64), (64, 128), (128, 256), (256, 256), (256, 512)])),
    (ShuffleConfig(), shuffle_net(4, 256, (2, 4, 2))),
    *((ShuffleConfig(8, mix, channels=128), shuffle_net(8, 128, (2, 4, 2))) for mix in ("shuffle", "none", "random")),
    (ShuffleConfig(1, "none", 64, (1, 2, 1)), shuffle_net(1, 64, (1, 2, 1))),
    (ShuffleNetConfig(), shuffle_net(3, 240, (4, 8, 4), classes=1000)),
    (ShuffleNetConfig(8, 0.5, "none"), shuffle_net(8, 192, (4, 8, 4), stem=16, classes=1000)),
    (CounterfactualConfig("resnet50", cardinality=32, path_width=4), 25_028_904),  # resnext50_32x4d
    (CounterfactualConfig("mobilenetv2_100", width=0.5), 1_968_680),  # timm's mobilenetv2_050
    # torchvision's documentation, num_params of each model
    (ImageNetConfig("resnet18"), 11_689_512),
    (ImageNetConfig("mobilenetv2_100"), 3_504_872),
    (ImageNetConfig("mobilenetv3_large_100"), 5_483_032),
    (ImageNetConfig("efficientnet_b0"), 5_288_548),
]
LARGE = (ImageNetConfig, CounterfactualConfig, ShuffleNetConfig)  # for ImageNet
SMALL = [(cfg, params) for cfg, params in CASES if not isinstance(cfg, LARGE)]


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
    size = 64 if isinstance(cfg, LARGE) else 32
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


@pytest.mark.parametrize("cfg", [family() for family in REGISTRY if family not in LARGE], ids=name)
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
        (BottleneckConfig, {"depth": 50}, "depth 50 .*9n \\+ 2"),
        (BottleneckConfig, {"depth": 2}, "depth 2 "),
        (BottleneckConfig, {"cardinality": 0}, "cardinality 0 must"),
        (BottleneckConfig, {"path_width": 0}, "path_width 0 must"),
        (BottleneckConfig, {"shortcut": "C"}, "unknown shortcut"),
        (WideConfig, {"depth": 20}, "depth 20 .*6n \\+ 4"),
        (WideConfig, {"depth": 28, "bottleneck": True}, "depth 28 .*9n \\+ 2"),
        (WideConfig, {"k": 0}, "k 0 "),
        (DeepVggConfig, {"depth": 15}, "depth of a VGG 15; valid: 11, 13, 16, 19"),
        (DeepVggConfig, {"head": "flat"}, "unknown head 'flat'.*gap, fc"),
        (DeepVggConfig, {"width": 0.0}, "width 0.0"),
        (StackConfig, {"kernels": "3-4"}, "kernels '3-4' are not valid; odd"),
        (StackConfig, {"kernels": "3/3"}, "kernels '3/3' are not valid.*for 3"),
        (StackConfig, {"kernels": ""}, "kernels '' are not"),
        (StackConfig, {"kernels": "7x7"}, "kernels '7x7' are not"),
        (StackConfig, {"growth": 0}, "growth 0"),
        (ChainConfig, {"act": "swish"}, "unknown act 'swish'"),
        (ChainConfig, {"init": "hee"}, "unknown init 'hee' .did you mean he.*parallel"),
        (ChainConfig, {"order": "conv-act"}, "unknown order 'conv-act'.*norm-act-conv"),
        (ChainConfig, {"front": "pool"}, "unknown front 'pool'.*conv-norm"),
        (ChainConfig, {"final": "norm"}, "unknown final 'norm'.*norm-act"),
        (ChainConfig, {"bias": "yes"}, "unknown bias 'yes'"),
        (ChainConfig, {"stages": 6}, "unknown stages 6; valid: 1, 2, 3, 4, 5"),
        (ChainConfig, {"stride": 3}, "unknown stride 3"),
        (ChainConfig, {"kernel": 4}, "unknown kernel 4"),
        (ChainConfig, {"stages": 5, "depth": 4}, "depth 4 is too small; at least 5"),
        (ChainConfig, {"growth": 0}, "growth 0"),
        (ChainConfig, {"stages": 4, "stride": 4}, "stride 4 and 4 stages"),
        (ChainConfig, {"gain": 0.0}, "gain 0.0 must"),
        (ChainConfig, {"slope": 0.2}, "slope 0.2 is for act 'leaky'"),
        (MobileNetV1Config, {"blocks": (1, 2, 2)}, "blocks .1, 2, 2. are not valid; 5 numbers"),
        (MobileNetV1Config, {"blocks": (1, 2, 2, 0, 1)}, "5 numbers of at least 1"),
        (MobileNetV1Config, {"width": 0.0}, "width 0.0"),
        (ShuffleConfig, {"mix": "transpose"}, "unknown mix 'transpose'; valid: shuffle, none, random"),
        (ShuffleConfig, {"groups": 5}, "groups 5 .*valid: 1, 2, 3, 4, 6, 8, 12, 24"),
        (ShuffleConfig, {"groups": 8, "channels": 200}, "channels 200 .*multiples of 32 above 24 .192, 224"),
        (ShuffleConfig, {"groups": 2, "channels": 16}, "channels 16 .*multiples of 8 above 24 .32, 40"),
        (ShuffleConfig, {"blocks": (2, 4)}, "blocks .2, 4. are not valid; 3 numbers"),
        (ShuffleNetConfig, {"groups": 5}, "unknown groups 5; valid: 1, 2, 3, 4, 8"),
        (ShuffleNetConfig, {"width": 0}, "width 0 must"),
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
