"""Costs against counts made by hand from the papers' tables."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from torch import nn

from cnnstudy.config import Refused
from cnnstudy.models import ImageNetConfig, MobileNetV2Config, ResNetConfig, VggConfig, build
from cnnstudy.probes.cost import cost, total


def conv(k: int, c_in: int, c_out: int, size: int) -> int:
    """MACs of a dense k x k convolution with an output of size x size."""
    return k * k * c_in * c_out * size * size


def resnet(blocks: tuple[int, ...], bottleneck: bool, stride_in_1x1: bool = False) -> int:
    """MACs of a ResNet at 224 x 224 from table 1 of He et al. 2016, with projection shortcuts (option B)."""
    macs, c_in = conv(7, 3, 64, 112), 64
    for stage, (width, count) in enumerate(zip((64, 128, 256, 512), blocks, strict=True)):
        size = 56 >> stage
        out = 4 * width if bottleneck else width
        for block in range(count):
            first = block == 0 and stage > 0
            if bottleneck:
                macs += conv(1, c_in, width, size if stride_in_1x1 or not first else 2 * size)
                macs += conv(3, width, width, size) + conv(1, width, out, size)
            else:
                macs += conv(3, c_in, width, size) + conv(3, width, width, size)
            if c_in != out:
                macs += conv(1, c_in, out, size)
            c_in = out
    return macs + c_in * 1000


def vgg(stages: tuple[int, ...]) -> int:
    """MACs of a VGG at 224 x 224 from table 1 of Simonyan & Zisserman 2015; ``stages``: convolutions per stage."""
    macs, c_in = 0, 3
    for stage, (width, count) in enumerate(zip((64, 128, 256, 512, 512), stages, strict=True)):
        for _ in range(count):
            macs, c_in = macs + conv(3, c_in, width, 224 >> stage), width
    return macs + 7 * 7 * 512 * 4096 + 4096 * 4096 + 4096 * 1000


def mobilenet_v2() -> int:
    """MACs of MobileNetV2 at 224 x 224 from table 2 of Sandler et al. 2018."""
    macs, c_in, size = conv(3, 3, 32, 112), 32, 112
    table = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    for t, c, n, s in table:
        for i in range(n):
            expand = conv(1, c_in, c_in * t, size) if t > 1 else 0
            size //= s if i == 0 else 1
            macs += expand + 9 * c_in * t * size * size + conv(1, c_in * t, c, size)
            c_in = c
    return macs + conv(1, 320, 1280, 7) + 1280 * 1000


def cifar(n: int) -> int:
    """MACs of the 6n + 2 layer network at 32 x 32 (He et al. 2016, section 4.2)."""
    stage = conv(3, 16, 16, 32)
    return conv(3, 3, 16, 32) + 2 * n * stage + 2 * (stage // 2 + (2 * n - 1) * stage) + 640


SMALL_VGG = conv(3, 3, 32, 32) + conv(3, 32, 32, 32) + conv(3, 32, 64, 16) + conv(3, 64, 64, 16)
SMALL_VGG += conv(3, 64, 128, 8) + conv(3, 128, 128, 8) + 1280


@pytest.mark.parametrize(
    ("cfg", "resolution", "by_hand", "known"),
    [
        (ImageNetConfig("resnet18"), 224, resnet((2, 2, 2, 2), False), 1_814_073_344),
        (ImageNetConfig("resnet34"), 224, resnet((3, 4, 6, 3), False), 3_663_761_408),
        (ImageNetConfig("resnet50"), 224, resnet((3, 4, 6, 3), True), 4_089_184_256),
        (ImageNetConfig("resnet101"), 224, resnet((3, 4, 23, 3), True), 7_801_405_440),
        (ImageNetConfig("resnet152"), 224, resnet((3, 8, 36, 3), True), 11_513_626_624),
        (ImageNetConfig("resnet50", ("stride_in_1x1",)), 224, resnet((3, 4, 6, 3), True, True), 3_857_973_248),
        (ImageNetConfig("vgg16"), 224, vgg((2, 2, 3, 3, 3)), 15_470_264_320),
        (ImageNetConfig("vgg19"), 224, vgg((2, 2, 4, 4, 4)), 19_632_062_464),
        (ImageNetConfig("mobilenetv2_100"), 224, mobilenet_v2(), 300_774_272),
        (ResNetConfig(), 32, cifar(3), 40_551_040),
        (ResNetConfig(skip=False), 32, cifar(3), 40_551_040),
        (ResNetConfig(depth=110), 32, cifar(18), 252_887_680),
        (VggConfig(), 32, SMALL_VGG, 38_634_752),
    ],
)
def test_macs_by_hand(cfg: Any, resolution: int, by_hand: int, known: int) -> None:
    """``known``: torch's counter and torchvision's documentation (GFLOPS column, which counts MACs) agree on it."""
    found = cost(cfg, resolution)
    assert found["macs"] == by_hand == known
    assert found["flops"] == 2 * found["macs"]
    for by in ("type", "stage", "size", "channels"):
        assert sum(found[f"macs_by_{by}"].values()) == found["macs"]


def test_weighted_layers_as_papers_count_them() -> None:
    names = {"resnet18": 18, "resnet34": 34, "resnet50": 50, "resnet101": 101, "vgg16": 16, "vgg19": 19}
    found = {name: cost(ImageNetConfig(name), 224) for name in names}
    assert {name: c["weighted_layers"] for name, c in found.items()} == names
    assert found["resnet18"]["weighted_layers_all"] == 18 + 3
    assert found["resnet50"]["weighted_layers_all"] == 50 + 4
    assert found["resnet50"]["weighted_layers_and_norms"] == 54 + 53
    assert [cost(ResNetConfig(depth=d), 32)["weighted_layers"] for d in (8, 20, 56)] == [8, 20, 56]
    projected = cost(ResNetConfig(shortcut="B"), 32)
    assert (projected["weighted_layers"], projected["weighted_layers_all"]) == (20, 22)


def test_parts_of_known_networks() -> None:
    vgg16 = cost(ImageNetConfig("vgg16"), 224)
    assert vgg16["macs_by_type"]["fc"] == 123_633_664  # 25088 * 4096 + 4096 * 4096 + 4096 * 1000
    assert set(vgg16["macs_by_type"]) == {"3x3", "fc"}
    assert vgg16["macs_by_size"][224] == conv(3, 3, 64, 224) + conv(3, 64, 64, 224)
    resnet50 = cost(ImageNetConfig("resnet50"), 224)
    assert list(resnet50["macs_by_stage"]) == ["conv1", "layer1", "layer2", "layer3", "layer4", "fc"]
    # 11.1 million activations: printed for ResNet-50 by Radosavovic et al. 2020, arXiv:2003.13678
    assert round(resnet50["activations"] / 1e6, 1) == 11.1
    v2 = cost(ImageNetConfig("mobilenetv2_100"), 224)
    assert round(v2["activations"] / 1e6, 1) == 6.7  # timm's model card prints 6.7
    assert v2["macs_by_type"]["depthwise"] == 20_716_416
    assert v2["params_by_stage"]["classifier"] == 1_281_000


def test_gates_are_told_from_heads() -> None:
    whole, bare = (cost(ImageNetConfig("mobilenetv3_large_100", e), 224) for e in ((), ("no_se",)))
    assert whole["macs"] - bare["macs"] == whole["macs_by_type"]["gate"] > 0
    assert "gate" not in bare["macs_by_type"]
    assert whole["macs_by_type"]["fc"] == 960 * 1280 + 1280 * 1000
    assert whole["weighted_layers"] == bare["weighted_layers"] == bare["weighted_layers_all"]


def test_elementwise_operations_by_hand() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Hardswish(), nn.MaxPool2d(2), nn.ReLU6())
    found = cost(model, 8)
    assert found["elementwise_by_op"] == {
        "native_batch_norm": 2 * 256,
        "hardswish": 5 * 256,
        "max_pool2d_with_indices": 4 * 64,
        "hardtanh": 2 * 64,
    }
    assert found["operations"] == 2 * 27 * 256 + found["elementwise"]


def test_hardswish_costs_no_macs_but_operations() -> None:
    hswish, relu6 = (cost(ImageNetConfig("mobilenetv3_large_100", e), 224) for e in ((), ("relu6",)))
    assert hswish["macs"] == relu6["macs"]
    assert hswish["operations"] > relu6["operations"]


def test_peak_bytes_by_hand() -> None:
    # input 3 x 8 x 8, then 4 x 8 x 8 twice: while the ReLU runs, its input and its output are alive
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 1))
    assert cost(model, 8)["peak_bytes"] == 4 * 64 * (3 + 4 + 4)
    model[1].inplace = True  # then the last convolution is the peak
    assert cost(model, 8)["peak_bytes"] == 4 * 64 * (3 + 4 + 1)
    assert cost(model, 8, batch=5, dtype=torch.bfloat16)["peak_bytes"] == 5 * 2 * 64 * (3 + 4 + 1)


def test_a_layer_used_twice_is_counted_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(self.conv(x))

    found = cost(Twice(), 4)
    assert (found["macs"], found["activations"], found["params"]) == (2 * 9 * 16, 2 * 3 * 16, 12)


@pytest.mark.parametrize("cfg", [ResNetConfig(), MobileNetV2Config()])
def test_the_same_everywhere(cfg: Any) -> None:
    """Per image, the counts depend neither on the batch nor on precision nor on the device."""
    reference = cost(cfg, 32)
    del reference["peak_bytes"]
    for other in (
        cost(cfg, 32, batch=8),
        cost(cfg, 32, dtype=torch.bfloat16),
        cost(cfg, 32, batch=2, device="cpu"),
        cost(build(cfg), 32),
    ):
        assert {key: other[key] for key in reference} == reference


def test_model_is_left_as_found() -> None:
    model = build(ResNetConfig(depth=8))
    model.stem.eval()
    model.head.weight.requires_grad_(False)
    model(torch.rand(2, 3, 32, 32)).sum().backward()
    modes = [m.training for m in model.modules()]
    state = {k: (id(v), v.clone(), v._version) for k, v in model.state_dict(keep_vars=True).items()}
    grads = {k: None if p.grad is None else p.grad.clone() for k, p in model.named_parameters()}
    found = cost(model, 32)
    assert found["params"] == 75_290 - 640  # trainable ones only
    assert modes == [m.training for m in model.modules()]
    for key, value in model.state_dict(keep_vars=True).items():
        assert (id(value), value._version) == (state[key][0], state[key][2])
        assert torch.equal(value, state[key][1]) and value.device.type == "cpu"
    for key, p in model.named_parameters():
        assert (p.grad is None) == (grads[key] is None) and (p.grad is None or torch.equal(p.grad, grads[key]))


def test_total_sums_any_column() -> None:
    layers = cost(VggConfig(), 32)["layers"]
    assert total(layers, "size", "activations") == {32: 65_536, 16: 32_768, 8: 16_384, 1: 10}


@pytest.mark.parametrize(("resolution", "batch"), [(0, 1), (32, 0)])
def test_refuses_sizes_below_one(resolution: int, batch: int) -> None:
    with pytest.raises(Refused, match="must be at least 1"):
        cost(VggConfig(), resolution, batch)


def test_refuses_images_that_are_too_small() -> None:
    with pytest.raises(Refused, match="Vgg can't take images of 4 x 4") as caught:
        cost(VggConfig(), 4)
    assert "\n" not in str(caught.value)


def test_takes_milliseconds() -> None:
    """About 50 ms of processor time; the bound leaves room for a slow, busy machine."""
    with torch.device("meta"):
        model = build(ImageNetConfig("resnet50"))
    cost(model, 224)
    start = time.process_time()
    cost(model, 224)
    assert time.process_time() - start < 0.5
