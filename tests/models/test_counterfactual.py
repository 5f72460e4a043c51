"""ImageNet networks changed; built on the meta device, so without weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from cnnstudy.config import Refused
from cnnstudy.models import COUNTERFACTUALS, EDITS, CounterfactualConfig, ImageNetConfig, build
from cnnstudy.probes.cost import cost


def meta(name: str, *edits: str, **fields: Any) -> nn.Module:
    with torch.device("meta"):
        return build(CounterfactualConfig(name, edits, **fields)).eval()


def params(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def shapes(model: nn.Module) -> list[tuple[type, tuple[int, ...]]]:
    """Types of the parts without parts, and the shapes of their weights, in order."""
    return [(type(m), tuple(getattr(m, "weight", torch.empty(0)).shape)) for m in model.modules() if not list(m.children())]


def plain(name: str) -> nn.Module:
    with torch.device("meta"):
        return build(ImageNetConfig(name)).eval()


# Cardinality and width ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "paths", "each", "published"),
    [
        ("resnet50", 32, 4, 25_028_904),  # torchvision's documentation: resnext50_32x4d
        ("resnet101", 64, 4, 83_455_272),  # resnext101_64x4d
        ("resnet50", 1, 128, 68_883_240),  # wide_resnet50_2
        ("resnet101", 1, 128, 126_886_696),  # wide_resnet101_2
        ("resnet50", 1, 64, 25_557_032),  # resnet50
    ],
)
def test_published_counts(name: str, paths: int, each: int, published: int) -> None:
    model = meta(name, cardinality=paths, path_width=each)
    assert params(model) == published
    assert {m.groups for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)} == {paths}


@pytest.mark.parametrize(("paths", "each"), [(2, 40), (4, 24), (8, 14), (32, 4)])
def test_the_paper_keeps_the_budget(paths: int, each: int) -> None:
    """Xie et al. 2017, table 2: about 25 M parameters in all of them."""
    assert params(meta("resnet50", cardinality=paths, path_width=each)) / 25_557_032 == pytest.approx(1, abs=0.025)


@pytest.mark.parametrize(
    ("name", "width", "twin"),
    [("mobilenetv2_100", 0.5, "mobilenetv2_050"), ("mobilenetv2_100", 1.4, "mobilenetv2_140")]
    + [("mobilenetv3_large_100", 0.75, "mobilenetv3_large_075"), ("mobilenetv1_100", 1.25, "mobilenetv1_125")],
)
def test_widths_that_timm_names_are_the_same(name: str, width: float, twin: str) -> None:
    assert shapes(meta(name, width=width)) == shapes(plain(twin))


# Howard et al. 2017, tables 4, 6 and 8: MACs and parameters in millions
@pytest.mark.parametrize(("alpha", "macs", "million"), [(1.0, 569, 4.2), (0.75, 325, 2.6), (0.5, 149, 1.3), (0.25, 41, 0.5)])
def test_published_mobilenets(alpha: float, macs: float, million: float) -> None:
    found = cost(CounterfactualConfig("mobilenetv1_100", width=alpha), 224)
    assert found["macs"] / 1e6 == pytest.approx(macs, rel=0.005)
    assert found["params"] / 1e6 == pytest.approx(million, abs=0.05)


def test_published_conv_mobilenet() -> None:
    """Table 4: 4866 million MACs and 29.3 million parameters."""
    found = cost(CounterfactualConfig("mobilenetv1_100", ("dense_layers",)), 224)
    assert found["macs"] / 1e6 == pytest.approx(4866, rel=0.001)
    assert found["params"] / 1e6 == pytest.approx(29.3, abs=0.05)
    x = torch.empty(1, 3, 224, 224, device="meta")
    sides = [[tuple(h.shape) for h in stages(meta("mobilenetv1_100", *edits), x)] for edits in ((), ("dense_layers",))]
    assert sides[0] == sides[1]


def stages(model: Any, x: torch.Tensor) -> list[torch.Tensor]:
    h = model.bn1(model.conv_stem(x))
    return [h := stage(h) for stage in model.blocks]


# Edits ----------------------------------------------------------------------------------------------------------------


def test_vgg16_with_single_filters() -> None:
    model = meta("vgg16", "single_filters")
    convs = [(m.in_channels, m.out_channels, m.kernel_size[0]) for m in model.features if isinstance(m, nn.Conv2d)]
    assert convs == [(3, 64, 5), (64, 128, 5), (128, 256, 7), (256, 512, 7), (512, 512, 7)]
    by_hand = sum(a * b * k * k + b for a, b, k in convs)
    assert params(model) == by_hand + params(plain("vgg16")) - sum(p.numel() for p in plain("vgg16").features.parameters())
    assert model(torch.empty(1, 3, 224, 224, device="meta")).shape == (1, 1000)
    assert params(meta("vgg16_bn", "single_filters")) == params(model) + 2 * sum(b for _, b, _ in convs)


@pytest.mark.parametrize("norm", ["", "_bn"])
def test_vgg19_less_three_layers_is_vgg16(norm: str) -> None:
    assert params(meta("vgg19" + norm)) > params(plain("vgg16" + norm))
    assert shapes(meta("vgg19" + norm, "one_conv_less")) == shapes(plain("vgg16" + norm))


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_shortcuts_without_parameters_and_none_at_all(name: str) -> None:
    published, padded, none = (meta(name, *edits) for edits in ((), ("pad_shortcuts",), ("no_skip",)))
    projections = sum(p.numel() for n, p in published.named_parameters() if "downsample" in n)
    assert projections and params(padded) == params(none) == params(published) - projections
    x = torch.empty(1, 3, 64, 64, device="meta")
    assert published(x).shape == padded(x).shape == none(x).shape
    assert sum(isinstance(m, nn.ReLU) for m in none.modules()) == sum(isinstance(m, nn.ReLU) for m in published.modules())


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_no_skip_adds_nothing(name: str) -> None:
    """A block whose last norm is silent passes its input on, and without its shortcut nothing."""
    x = torch.rand(1, 256 if name == "resnet50" else 64, 4, 4)
    for edits, expected in (((), x), (("pad_shortcuts",), x), (("no_skip",), torch.zeros_like(x))):
        block = build(CounterfactualConfig(name, edits)).eval().layer1[1]  # timm starts the last norm at 0
        assert torch.equal(block(x.clone()), expected)


def test_padding_shortcuts_subsample() -> None:
    block = build(CounterfactualConfig("resnet50", ("pad_shortcuts",))).eval().layer2[0]
    x = torch.rand(1, 256, 6, 6)
    assert torch.equal(block(x.clone())[:, 128:384], x[:, :, ::2, ::2])


@pytest.mark.parametrize(("name", "layers"), [("resnet50", 50), ("resnet101", 100), ("resnet152", 152)])
def test_basic_blocks_in_as_many_layers(name: str, layers: int) -> None:
    model = meta(name, "basic_deep")
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) and "downsample" not in n for n, m in model.named_modules()) == layers
    assert {m.out_channels for m in model.layer4.modules() if isinstance(m, nn.Conv2d)} == {512}


def test_cifar_stem_takes_pixels() -> None:
    model = build(CounterfactualConfig("resnet50", ("cifar_stem",), classes=10)).eval()
    assert params(model) == 25_557_032 - 2_049_000 + 20_490 - 7 * 7 * 3 * 64 + 27 * 64
    x = torch.rand(1, 3, 32, 32)
    seen = []
    model.layer1.register_forward_pre_hook(lambda module, given: seen.append(given[0].shape))
    assert model(x).shape == (1, 10) and seen == [(1, 64, 32, 32)]
    mean, std = model.conv1[0].mean, model.conv1[0].std
    torch.testing.assert_close(model.conv1(x), nn.functional.conv2d((x - mean) / std, model.conv1[1].weight, padding=1))


def test_mobilenet_without_expansion_keeps_the_macs() -> None:
    found, published = (cost(CounterfactualConfig("mobilenetv2_100", e), 224) for e in (("no_expansion",), ()))
    assert found["macs"] / published["macs"] == pytest.approx(1, abs=0.01)
    model = meta("mobilenetv2_100", "no_expansion")
    for block in (b for stage in model.blocks for b in stage):
        assert block.conv_dw.in_channels == block.conv_pw.in_channels  # nothing between a block's input and its depthwise layer
        assert not isinstance(block.bn2.act, nn.ReLU6)  # still a linear bottleneck
    was = meta("mobilenetv2_100")
    assert [len(stage) for stage in model.blocks] == [len(stage) for stage in was.blocks]
    assert [b.conv_dw.stride for s in model.blocks for b in s] == [b.conv_dw.stride for s in was.blocks for b in s]


def test_inverted_residuals_without_shortcuts() -> None:
    blocks = [b for stage in meta("mobilenetv2_100").blocks for b in stage]
    assert sum(b.has_skip for b in blocks) == 10
    model = build(CounterfactualConfig("mobilenetv2_100", ("no_block_skip",))).eval()
    block = model.blocks[1][1]
    nn.init.zeros_(block.bn3.weight)
    assert not block(torch.rand(1, 24, 4, 4)).any()


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2_100", "vgg11"])
def test_out_of_place(name: str) -> None:
    def count(model: nn.Module) -> int:
        return sum(bool(getattr(m, "inplace", False)) for m in model.modules())

    assert count(meta(name)) > 5 and count(meta(name, "out_of_place")) == 0


def test_torchvisions_networks() -> None:
    assert params(meta("alexnet")) == 61_100_840  # torchvision's documentation
    assert params(meta("googlenet")) == 6_624_904
    assert meta("googlenet", classes=7)(torch.empty(1, 3, 224, 224, device="meta")).shape == (1, 7)


def test_edits_of_imagenet_are_there_and_apply_in_order() -> None:
    assert set(EDITS) < set(COUNTERFACTUALS)
    with torch.device("meta"):
        twin = build(ImageNetConfig("vgg16", ("gap_head",)))
    assert params(meta("vgg16", "gap_head")) == params(twin)
    assert params(meta("vgg16", "single_filters", "gap_head")) < params(meta("vgg16", "single_filters")) / 3
    assert params(meta("resnet50", "pad_shortcuts", cardinality=32, path_width=4)) < 25_028_904


def test_every_edit_says_what_it_does() -> None:
    for edit in COUNTERFACTUALS.values():
        assert getattr(edit.apply, "func", edit.apply).__doc__


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("resnet5O", {}, "unknown model 'resnet5O' in timm"),
        ("resnet50", {"width": 0.5}, "'resnet50' takes no width multiplier; valid: mobilenetv1_100, "),
        ("mobilenetv1_100", {"width": 0.0}, "width 0.0 must"),
        ("resnet18", {"cardinality": 32}, "'resnet18' takes no cardinality and path_width; valid: resnet50"),
        ("resnet50", {"cardinality": 0}, "cardinality 0"),
        ("resnet50", {"edits": ("single_filters",)}, "'single_filters' does not fit 'resnet50'; valid: vgg"),
        ("vgg16", {"edits": ("single_filter",)}, "unknown edit 'single_filter' .did you mean single_filters"),
    ],
)
def test_refuses_in_one_line(name: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(Refused, match=message) as caught:
        meta(name, *fields.pop("edits", ()), **fields)
    assert "\n" not in str(caught.value)
