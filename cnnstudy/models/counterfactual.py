"""ImageNet networks at other widths and cardinalities, and with design choices undone that ``imagenet.EDITS`` leaves alone.

Everything is counted or timed, nothing is pretrained.  The networks are timm's (two old ones torchvision's), changed as little
as the question needs; edits are applied in order, those of ``imagenet`` among them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from cnnstudy.config import Refused, choose
from cnnstudy.layers import Normalize, SubsamplePad, conv
from cnnstudy.models.imagenet import BOTTLENECK_RESNETS, EDITS, Edit, ImageNetConfig, imagenet
from cnnstudy.models.torchvision_mend import import_timm, import_torchvision

MOBILE = ("mobilenetv1_100", "mobilenetv2_100", "mobilenetv3_large_100")  # take a width multiplier
TORCHVISION: dict[str, dict[str, Any]] = {  # timm lacks them
    "alexnet": {},
    "googlenet": {"aux_logits": False, "init_weights": False},
}


@dataclass(frozen=True)
class CounterfactualConfig:
    """``name``: any timm network, "alexnet" or "googlenet"; ``edits``: names in ``COUNTERFACTUALS``, applied in order.

    ``width``: the multiplier of a MobileNet at 1.0.  ``cardinality`` x ``path_width``: "C x d" of ResNet-50, 101 or 152, whose
    bottlenecks then have C d, 2 C d, ... channels inside; 32 x 4 is ResNeXt, 1 x 64 the ResNet, 1 x 128 the wide one.
    """

    name: str = "resnet50"
    edits: tuple[str, ...] = ()
    width: float = 1.0
    cardinality: int = 1
    path_width: int = 64
    classes: int = 1000

    def __post_init__(self) -> None:
        object.__setattr__(self, "edits", tuple(self.edits))  # JSON has lists
        if self.cardinality < 1 or self.path_width < 1 or self.classes < 1:
            raise Refused(f"cardinality {self.cardinality}, path_width {self.path_width}, classes {self.classes} must be at least 1")
        if not self.width > 0:
            raise Refused(f"width {self.width} must be above 0")
        if self.width != 1 and self.name not in MOBILE:
            raise Refused(f"{self.name!r} takes no width multiplier; valid: {', '.join(MOBILE)}")
        if (self.cardinality, self.path_width) != (1, 64) and self.name not in BOTTLENECK_RESNETS:
            raise Refused(f"{self.name!r} takes no cardinality and path_width; valid: {', '.join(BOTTLENECK_RESNETS)}")
        for edit in self.edits:
            choose("edit", edit, COUNTERFACTUALS)
            if not self.name.startswith(COUNTERFACTUALS[edit].names):
                raise Refused(f"edit {edit!r} does not fit {self.name!r}; valid: {', '.join(COUNTERFACTUALS[edit].names)}...")


def counterfactual(cfg: CounterfactualConfig) -> nn.Module:
    """The network: (N, 3, H, W), normalised -> logits (N, classes).  Works under ``with torch.device("meta")``."""
    plain = ImageNetConfig(cfg.name, classes=cfg.classes)
    if cfg.name in TORCHVISION:
        model = import_torchvision().models.get_model(cfg.name, weights=None, num_classes=cfg.classes, **TORCHVISION[cfg.name])
    elif cfg.width != 1:
        model = _narrow(cfg.name)(cfg.name, cfg.width, num_classes=cfg.classes)
    elif (cfg.cardinality, cfg.path_width) != (1, 64):
        inner = {"cardinality": cfg.cardinality, "base_width": cfg.path_width}
        model = import_timm().create_model(cfg.name, num_classes=cfg.classes, **inner)
    else:
        model = imagenet(plain)
    for edit in cfg.edits:
        model = COUNTERFACTUALS[edit].apply(model, plain)
    return model


def _narrow(name: str) -> Callable[..., nn.Module]:
    """timm's own builder of a MobileNet, which takes any multiplier; its registered names have a few of them only."""
    models = import_timm().models
    builders: dict[str, Callable[..., nn.Module]] = {
        "mobilenetv1_100": models.efficientnet._gen_mobilenet_v1,
        "mobilenetv2_100": models.efficientnet._gen_mobilenet_v2,
        "mobilenetv3_large_100": models.mobilenetv3._gen_mobilenet_v3,
    }
    return builders[name]


# VGG -----------------------------------------------------------------------------------------------------------------


def single_filters(model: Any, cfg: ImageNetConfig) -> nn.Module:
    """VGG with each block's stack replaced by one convolution of the same receptive field: 5x5 for two layers, 7x7 for three."""
    layers: list[nn.Module] = []
    block: list[nn.Module] = []
    for module in model.features:
        if isinstance(module, nn.MaxPool2d):
            convs = [m for m in block if isinstance(m, nn.Conv2d)]
            last = block[block.index(convs[-1]) + 1 :]  # its norm, where there is one, and its ReLU
            layers += [conv(convs[0].in_channels, convs[-1].out_channels, 2 * len(convs) + 1, bias=True), *last, module]
            block = []
        else:
            block.append(module)
    model.features = nn.Sequential(*layers)
    return model


def one_conv_less(model: Any, cfg: ImageNetConfig) -> nn.Module:
    """VGG-19 without the last convolution (with its norm and ReLU) of its third, fourth and fifth block."""
    layers = list(model.features)
    pools = [i for i, module in enumerate(layers) if isinstance(module, nn.MaxPool2d)]
    for end in reversed(pools[2:]):
        start = max(i for i in range(end) if isinstance(layers[i], nn.Conv2d))
        del layers[start:end]
    model.features = nn.Sequential(*layers)
    return model


# ResNet --------------------------------------------------------------------------------------------------------------


def _blocks(model: Any) -> list[tuple[nn.Sequential, int, Any]]:
    """Each residual block with the stage that it stands in and its place there."""
    return [(stage, i, block) for stage in (model.layer1, model.layer2, model.layer3, model.layer4) for i, block in enumerate(stage)]


def no_skip(model: Any, cfg: ImageNetConfig) -> nn.Module:
    """A ResNet's layers without shortcuts and additions: its plain twin."""
    for stage, i, block in _blocks(model):
        names = [f"{part}{n}" for n in (1, 2, 3) if hasattr(block, f"conv{n}") for part in ("conv", "bn", "act")]
        stage[i] = nn.Sequential(*(getattr(block, name) for name in names))
    return model


def pad_shortcuts(model: Any, cfg: ImageNetConfig) -> nn.Module:
    """A ResNet whose shortcuts have no parameters: where shapes change, every other pixel and zeros for new channels (option A)."""
    for _, _, block in _blocks(model):
        if block.downsample is not None:
            projection = block.downsample[0]
            block.downsample = SubsamplePad(projection.in_channels, projection.out_channels, projection.stride[0])
    return model


def basic_deep(model: Any, cfg: ImageNetConfig) -> nn.Module:
    """Basic blocks at the bottlenecks' inner widths, 64 to 512, three for every two: as many layers (ResNet-101: one less)."""
    resnet = import_timm().models.resnet
    ends = [0]
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        ends.append(ends[-1] + len(stage))
    layers = [3 * b // 2 - 3 * a // 2 for a, b in zip(ends, ends[1:], strict=False)]
    return resnet.ResNet(resnet.BasicBlock, layers, num_classes=cfg.classes)


def cifar_stem(model: Any, cfg: ImageNetConfig) -> nn.Module:
    """A ResNet for 32 x 32: takes pixels in [0, 1], one 3x3 convolution of stride 1 in place of the 7x7 and the pooling."""
    old = model.conv1
    model.conv1 = nn.Sequential(Normalize(), conv(3, old.out_channels))
    model.maxpool = nn.Identity()
    return model


# MobileNet -----------------------------------------------------------------------------------------------------------


def dense_layers(model: Any, cfg: ImageNetConfig) -> nn.Module:
    """MobileNetV1 with one dense 3x3 convolution for each depthwise and 1x1: the paper's "Conv MobileNet" (table 4)."""
    for stage in model.blocks:
        for i, block in enumerate(stage):
            c_in, c_out = block.conv_dw.in_channels, block.conv_pw.out_channels
            stage[i] = nn.Sequential(conv(c_in, c_out, 3, block.conv_dw.stride[0]), nn.BatchNorm2d(c_out), nn.ReLU6(inplace=True))
    return model


def no_block_skip(model: Any, cfg: ImageNetConfig) -> nn.Module:
    """Inverted residuals without their shortcuts."""
    for block in (block for stage in model.blocks for block in stage):
        block.has_skip = False
    return model


NO_EXPANSION_WIDTH = 3.2  # 0.2 % more MACs at 224 pixels than MobileNetV2


def no_expansion(model: Any, cfg: ImageNetConfig) -> nn.Module:
    """MobileNetV2 with expansion 1 and all block widths times ``NO_EXPANSION_WIDTH``, so that its MACs stay what they are."""
    efficientnet = import_timm().models.efficientnet
    stages = ["ds_r1_k3_s1_c16", "ds_r2_k3_s2_c24", "ds_r3_k3_s2_c32", "ds_r4_k3_s2_c64"]
    stages += ["ds_r3_k3_s1_c96", "ds_r3_k3_s2_c160", "ds_r1_k3_s1_c320"]
    blocks = efficientnet.decode_arch_def([[stage] for stage in stages])
    widen = partial(efficientnet.round_channels, multiplier=NO_EXPANSION_WIDTH)
    return efficientnet.EfficientNet(
        blocks, num_classes=cfg.classes, num_features=1280, stem_size=32, fix_stem=True, round_chs_fn=widen, act_layer=nn.ReLU6
    )


# Any network ---------------------------------------------------------------------------------------------------------


def out_of_place(model: nn.Module, cfg: ImageNetConfig) -> nn.Module:
    """No activation overwrites its input.  (timm's do, wherever they can.)"""
    for module in model.modules():
        if hasattr(module, "inplace"):
            module.inplace = False  # type: ignore[assignment]
    return model


COUNTERFACTUALS: dict[str, Edit] = {
    **EDITS,
    "single_filters": Edit(single_filters, ("vgg11", "vgg13", "vgg16", "vgg19")),
    "one_conv_less": Edit(one_conv_less, ("vgg19",)),
    "no_skip": Edit(no_skip, ("resnet",)),
    "pad_shortcuts": Edit(pad_shortcuts, ("resnet",)),
    "basic_deep": Edit(basic_deep, BOTTLENECK_RESNETS),
    "cifar_stem": Edit(cifar_stem, ("resnet",)),
    "dense_layers": Edit(dense_layers, ("mobilenetv1",)),
    "no_block_skip": Edit(no_block_skip, ("mobilenetv2", "mobilenetv3", "efficientnet")),
    "no_expansion": Edit(no_expansion, ("mobilenetv2_100",)),
    "out_of_place": Edit(out_of_place),
}
