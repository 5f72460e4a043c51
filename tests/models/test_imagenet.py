"""timm's networks and their counterfactuals; built on the meta device, so without weights."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

from cnnstudy.config import Refused
from cnnstudy.models import EDITS, ImageNetConfig, build


def meta(name: str, *edits: str) -> nn.Module:
    with torch.device("meta"):
        return build(ImageNetConfig(name, edits)).eval()


def params(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def basic_stage(c_in: int, c: int, blocks: int) -> int:
    """Parameters of a stage of basic blocks with a projection where shapes change."""
    projection = c_in * c + 2 * c if c_in != c else 0
    return 9 * c * (c_in + (2 * blocks - 1) * c) + 2 * blocks * 2 * c + projection


STEM = 7 * 7 * 3 * 64 + 2 * 64
VGG_CONVS = [(3, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 256), (256, 512)]
VGG_CONVS += [(512, 512)] * 5
VGG_FC = 7 * 7 * 512 * 4096 + 4096 + 4096 * 4096 + 4096 + 4096 * 1000 + 1000
DEPTHS = {64: 3, 128: 4, 256: 6, 512: 3}


def vgg_convs(cap: int = 512) -> int:
    return sum(9 * min(a, cap) * min(b, cap) + min(b, cap) for a, b in VGG_CONVS)


def basic(multiplier: int) -> int:
    """ResNet-50's stages of basic blocks, ``multiplier`` times as wide as ResNet-34's."""
    widths, c_in, count = [c * multiplier for c in DEPTHS], 64, STEM
    for c, blocks in zip(widths, DEPTHS.values(), strict=True):
        count, c_in = count + basic_stage(c_in, c, blocks), c
    return count + c_in * 1000 + 1000


@pytest.mark.parametrize(
    ("name", "edits", "expected"),
    [
        ("vgg16", (), vgg_convs() + VGG_FC),  # 138,357,544 in torchvision's documentation
        ("vgg16", ("gap_head",), vgg_convs() + 512 * 1000 + 1000),
        ("vgg16", ("early_downsampling",), vgg_convs() + VGG_FC + 9 * 61 * 64 + 7 * 7 * 3 * 64 + 64),
        ("vgg16", ("width_cap_256",), vgg_convs(256) + VGG_FC - 7 * 7 * 256 * 4096),
        ("resnet50", (), 25_557_032),  # torchvision's documentation
        ("resnet50", ("basic_narrow",), 21_797_672),  # ResNet-34 in torchvision's documentation
        ("resnet50", ("basic_narrow",), basic(1)),
        ("resnet50", ("basic_wide",), basic(4)),
        ("resnet50", ("vgg_head",), 25_557_032 - 2_049_000 + VGG_FC + 7 * 7 * 1536 * 4096),
        ("resnet50", ("stride_in_1x1",), 25_557_032),
        ("resnet101", ("stride_in_1x1", "vgg_head"), 44_549_160 - 2_049_000 + VGG_FC + 7 * 7 * 1536 * 4096),
    ],
)
def test_edited_network_by_hand(name: str, edits: tuple[str, ...], expected: int) -> None:
    model = meta(name, *edits)
    assert params(model) == expected
    assert model(torch.empty(1, 3, 224, 224, device="meta")).shape == (1, 1000)


@pytest.mark.parametrize("name", ["efficientnet_b0", "mobilenetv2_100", "mobilenetv3_large_100"])
def test_dense_depthwise_changes_groups_only(name: str) -> None:
    before, after = (dict(m.named_modules()) for m in (meta(name), meta(name, "dense_depthwise")))
    assert before.keys() == after.keys()
    convs = [k for k, m in before.items() if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert len(convs) > 10
    for k in convs:
        old, new = before[k], after[k]
        assert (new.groups, new.stride, new.padding, new.kernel_size) == (1, old.stride, old.padding, old.kernel_size)
        assert new.weight.numel() == old.weight.numel() * old.in_channels


def test_mobilenetv3_edits() -> None:
    def kinds(*edits: str) -> set[str]:
        return {type(m).__name__.lower() for m in meta("mobilenetv3_large_100", *edits).modules()}

    assert "hardswish" in kinds() and "relu6" not in kinds()
    assert "hardswish" not in kinds("relu6") and "relu6" in kinds("relu6")
    assert not {"hardswish", "relu6"} & kinds("relu")
    assert "squeezeexcite" in kinds() and "squeezeexcite" not in kinds("no_se")
    whole = meta("mobilenetv3_large_100", "v2_stem", "v2_last_stage", "no_se", "relu6")
    assert whole.conv_stem.out_channels == 32
    x = torch.empty(1, 3, 224, 224, device="meta")
    assert whole.forward_features(x).shape == (1, 1280, 7, 7)  # V2's 1280 features come before the pooling
    assert whole(x).shape == (1, 1000)


def test_mobilenetv2_with_resnet18_widths() -> None:
    model = meta("mobilenetv2_100", "resnet18_widths")
    widths = [stage[-1].conv_pwl.out_channels for stage in model.blocks[1:]]
    assert (model.conv_stem.out_channels, widths) == (64, [64, 128, 256, 256, 512, 512])
    assert len(model.blocks) == 7 and [len(stage) for stage in model.blocks] == [1, 2, 3, 4, 3, 3, 1]


def test_initialisation_edits() -> None:
    plain = build(ImageNetConfig("resnet18"))
    assert not plain.layer1[0].bn2.weight.any()  # timm's default; the published network starts at 1
    unit = build(ImageNetConfig("resnet18", ("unit_norms", "normal_init")))
    assert (unit.layer1[0].bn2.weight == 1).all()
    assert unit.layer1[0].conv1.weight.std().item() == pytest.approx(0.01, rel=0.02)


def test_classes_and_lists() -> None:
    with torch.device("meta"):
        for edits in ((), ("vgg_head",), ("basic_narrow",)):
            assert build(ImageNetConfig("resnet50", edits, classes=7)).fc.__class__ in (nn.Linear, nn.Sequential)
            assert build(ImageNetConfig("resnet50", edits, classes=7))(torch.empty(1, 3, 224, 224)).shape == (1, 7)
    assert ImageNetConfig("vgg16", ["gap_head"]) == ImageNetConfig("vgg16", ("gap_head",))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "edits", "message"),
    [
        ("resnet5O", (), "unknown model 'resnet5O' in timm .*resnet50"),
        ("nothing-like-it-at-all", (), "unknown model"),
        ("resnet50", ("gap_head",), "'gap_head' does not fit 'resnet50'; valid: vgg"),
        ("resnet50", ("gaphead",), "unknown edit 'gaphead' .did you mean gap_head"),
        ("resnet18", ("dense_depthwise",), "has no depthwise convolution"),
        ("mobilenetv3_large_100", ("relu", "relu6"), "has no h-swish"),
    ],
)
def test_refuses_in_one_line(name: str, edits: tuple[str, ...], message: str) -> None:
    with pytest.raises(Refused, match=message) as caught:
        meta(name, *edits)
    assert "\n" not in str(caught.value)


def test_every_edit_says_what_it_does() -> None:
    for edit in EDITS.values():
        assert getattr(edit.apply, "func", edit.apply).__doc__


def test_mend_declares_the_missing_operators_only_when_they_are_missing(tmp_path: Path) -> None:
    """A stand-in torchvision that fails as the real one does; then one that fails for another reason."""
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "part.py").write_text('import torch\nwhole = hasattr(torch.ops.torchvision, "nms")\n')
    (package / "__init__.py").write_text(
        textwrap.dedent("""
        import torch
        import torchvision.part
        if not hasattr(torch.ops.torchvision, "nms"):
            raise RuntimeError("operator torchvision::nms does not exist")
        whole = torchvision.part.whole  # False if left over from the first attempt
        """)
    )
    script = textwrap.dedent("""
        import gc, sys
        sys.path.insert(0, sys.argv[1])
        from cnnstudy.models.torchvision_mend import import_torchvision
        assert import_torchvision().whole
        gc.collect()
        import torch
        assert torch.ops.torchvision.nms and torch.ops.torchvision.qnms
        assert import_torchvision() is sys.modules["torchvision"]
        del sys.modules["torchvision"]
        open(sys.argv[1] + "/torchvision/__init__.py", "w").write("raise RuntimeError('something else')")
        try:
            import_torchvision()
        except RuntimeError as error:
            assert str(error) == "something else"
        else:
            raise AssertionError("hidden")
        """)
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, timeout=120)
