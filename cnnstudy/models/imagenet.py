"""Networks for ImageNet, straight from timm with random weights, and counterfactuals of them.

An *edit* turns a network into what it would be without one of its design choices, e.g. VGG-16 with global average
pooling.  Edits are applied in order; each says in its docstring how the result differs.  Inputs are what
timm expects (normalised images); nothing is added in front.  Costs: ``probes.cost`` on the meta device.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import nn

from cnnstudy.config import Refused, choose
from cnnstudy.layers import WEIGHT_INIT, init_weights
from cnnstudy.models.torchvision_mend import import_timm


@dataclass(frozen=True)
class ImageNetConfig:
    """``name``: any timm model (weights random); ``edits``: names in ``EDITS``, applied in order."""

    name: str = "resnet50"
    edits: tuple[str, ...] = ()
    classes: int = 1000

    def __post_init__(self) -> None:
        object.__setattr__(self, "edits", tuple(self.edits))  # JSON has lists
        if self.classes < 1:
            raise Refused(f"classes {self.classes} must be at least 1")
        for edit in self.edits:
            choose("edit", edit, EDITS)
            if not self.name.startswith(EDITS[edit].names):
                raise Refused(f"edit {edit!r} does not fit {self.name!r}; valid: {', '.join(EDITS[edit].names)}...")


def imagenet(cfg: ImageNetConfig) -> nn.Module:
    """timm's network ``cfg.name`` with ``cfg.edits`` applied: (N, 3, H, W), normalised -> logits (N, classes).

    Works under ``with torch.device("meta")``.  Raises Refused for a name that timm does not have.
    """
    timm = import_timm()
    if not timm.is_model(cfg.name):
        close = difflib.get_close_matches(cfg.name, timm.list_models(), n=3, cutoff=0.5)
        hint = f"closest: {', '.join(close)}" if close else "see timm.list_models()"
        raise Refused(f"unknown model {cfg.name!r} in timm {timm.__version__}; {hint}")
    model = timm.create_model(cfg.name, pretrained=False, num_classes=cfg.classes)
    for edit in cfg.edits:
        model = EDITS[edit].apply(model, replace(cfg, edits=()))
    return model


def _conv(old: nn.Conv2d, **changes: Any) -> nn.Conv2d:
    """A new convolution like ``old`` but for ``changes``."""
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "groups")
    settings = {name: getattr(old, name) for name in names} | {"bias": old.bias is not None} | changes
    return nn.Conv2d(**settings)


def _swap(model: nn.Module, fits: Callable[[nn.Module], bool], new: Callable[[Any], nn.Module], what: str) -> nn.Module:
    """``model`` with each submodule that ``fits`` replaced; refused where there is none."""
    found = [(name, module) for name, module in model.named_modules() if fits(module)]
    if not found:
        raise Refused(f"this {type(model).__name__} has no {what} to replace")
    for name, module in found:
        model.set_submodule(name, new(module))
    return model


# VGG -----------------------------------------------------------------------------------------------------------------


def gap_head(model: Any, cfg: ImageNetConfig) -> nn.Module:
    """VGG with global average pooling and one linear layer in place of its three fully connected layers."""
    model.pre_logits = nn.Identity()
    model.head.fc = nn.Linear(512, cfg.classes)
    return model


def early_downsampling(model: Any, cfg: ImageNetConfig) -> nn.Module:
    """VGG behind ResNet's stem (7x7, stride 2, 64 channels, and 3x3 max pooling, stride 2).

    Its 3x3 layers work at a quarter of the resolution each way; the head stays (timm brings the last map to 7x7).
    """
    first, *rest = model.features
    stem = [nn.Conv2d(3, 64, 7, 2, 3), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    model.features = nn.Sequential(*stem, _conv(first, in_channels=64), *rest)
    return model


def width_cap_256(model: Any, cfg: ImageNetConfig) -> nn.Module:
    """VGG with no convolution wider than 256 channels; the fully connected layers keep their 4096."""

    def capped(old: nn.Conv2d) -> nn.Conv2d:
        return _conv(old, in_channels=min(256, old.in_channels), out_channels=min(256, old.out_channels))

    model.features = _swap(model.features, lambda m: isinstance(m, nn.Conv2d), capped, "convolution")
    model.pre_logits.fc1 = _conv(model.pre_logits.fc1, in_channels=256)
    return model


# ResNet --------------------------------------------------------------------------------------------------------------


def _basic(model: Any, cfg: ImageNetConfig, channels: tuple[int, ...]) -> nn.Module:
    resnet = import_timm().models.resnet
    layers = [len(stage) for stage in (model.layer1, model.layer2, model.layer3, model.layer4)]
    return resnet.ResNet(resnet.BasicBlock, layers, num_classes=cfg.classes, channels=channels)


def basic_wide(model: Any, cfg: ImageNetConfig) -> nn.Module:
    """The same stages of basic blocks (two 3x3) at the bottlenecks' outer widths, 256 to 2048."""
    return _basic(model, cfg, (256, 512, 1024, 2048))


def basic_narrow(model: Any, cfg: ImageNetConfig) -> nn.Module:
    """The same stages of basic blocks at the bottlenecks' inner widths, 64 to 512; from ResNet-50 that is ResNet-34."""
    return _basic(model, cfg, (64, 128, 256, 512))


def vgg_head(model: Any, cfg: ImageNetConfig) -> nn.Module:
    """Flatten and VGG's three fully connected layers (4096, 4096, classes) in place of global average pooling and one.

    For 224 x 224 (a last map of 7 x 7).
    """
    model.global_pool = nn.Flatten()
    sizes = [model.num_features * 7 * 7, 4096, 4096]
    hidden = [part for a, b in zip(sizes, sizes[1:], strict=False) for part in (nn.Linear(a, b), nn.ReLU(inplace=True))]
    model.fc = nn.Sequential(*hidden, nn.Linear(4096, cfg.classes))
    return model


def stride_in_1x1(model: Any, cfg: ImageNetConfig) -> nn.Module:
    """Bottlenecks as first published: the stride in the first 1x1 instead of the 3x3 (arXiv:1512.03385, figure 5)."""
    for block in (block for stage in (model.layer1, model.layer2, model.layer3, model.layer4) for block in stage):
        if block.conv2.stride != (1, 1):
            block.conv1.stride, block.conv2.stride = block.conv2.stride, (1, 1)
    return model


# MobileNet and EfficientNet ------------------------------------------------------------------------------------------


def dense_depthwise(model: nn.Module, cfg: ImageNetConfig) -> nn.Module:
    """Every depthwise convolution made dense, at equal widths and depth."""

    def depthwise(module: nn.Module) -> bool:
        return isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1

    return _swap(model, depthwise, lambda old: _conv(old, groups=1), "depthwise convolution")


def _hardswish_to(act: type[nn.Module], model: nn.Module, cfg: ImageNetConfig) -> nn.Module:
    """Every h-swish replaced by a rectifier; the gates' hard sigmoids stay."""
    return _swap(model, lambda m: type(m).__name__.lower() == "hardswish", lambda old: act(), "h-swish")


def no_se(model: nn.Module, cfg: ImageNetConfig) -> nn.Module:
    """No squeeze-and-excite gates."""
    return _swap(model, lambda m: type(m).__name__ == "SqueezeExcite", lambda old: nn.Identity(), "squeeze-excite gate")


def _mobilenet_v2(cfg: ImageNetConfig) -> Any:
    return imagenet(ImageNetConfig("mobilenetv2_100", classes=cfg.classes))


def v2_stem(model: Any, cfg: ImageNetConfig) -> nn.Module:
    """MobileNetV3 with V2's beginning: 32 filters with ReLU6 instead of 16 with h-swish, and the block that follows."""
    v2 = _mobilenet_v2(cfg)
    model.conv_stem, model.bn1, model.blocks[0] = v2.conv_stem, v2.bn1, v2.blocks[0]
    return model


def v2_last_stage(model: Any, cfg: ImageNetConfig) -> nn.Module:
    """MobileNetV3-Large with V2's ending: a last inverted residual (160 to 320) and 1280 features before the pooling.

    V3 pools first and dropped that block's depthwise and projection layers (arXiv:1905.02244, figure 5).
    """
    v2 = _mobilenet_v2(cfg)
    model.blocks[-1] = nn.Sequential(v2.blocks[-1], v2.conv_head, v2.bn2)
    model.conv_head = model.norm_head = model.act2 = nn.Identity()
    return model


def resnet18_widths(model: Any, cfg: ImageNetConfig) -> nn.Module:
    """MobileNetV2 with ResNet-18's channels: 64 down to 56 pixels, then 128, 256 and 512; expansion still 6."""
    efficientnet = import_timm().models.efficientnet
    stages = ["ds_r1_k3_s1_c64", "ir_r2_k3_s2_e6_c64", "ir_r3_k3_s2_e6_c128", "ir_r4_k3_s2_e6_c256"]
    stages += ["ir_r3_k3_s1_e6_c256", "ir_r3_k3_s2_e6_c512", "ir_r1_k3_s1_e6_c512"]
    blocks = efficientnet.decode_arch_def([[stage] for stage in stages])
    return efficientnet.EfficientNet(blocks, num_classes=cfg.classes, stem_size=64, act_layer=nn.ReLU6)


# Any network ---------------------------------------------------------------------------------------------------------


def unit_norms(model: nn.Module, cfg: ImageNetConfig) -> nn.Module:
    """Every batch norm starts at scale 1, as published.  (timm starts the last one of each residual branch at 0.)"""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    return model


def _redraw(kind: str, model: nn.Module, cfg: ImageNetConfig) -> nn.Module:
    """Every convolution drawn anew by ``layers.WEIGHT_INIT[kind]``."""
    return init_weights(model, kind)


@dataclass(frozen=True)
class Edit:
    """``apply(model, cfg) -> model`` (may alter its argument), for timm names that start with one of ``names``."""

    apply: Callable[[Any, ImageNetConfig], nn.Module]
    names: tuple[str, ...] = ("",)


BOTTLENECK_RESNETS = ("resnet50", "resnet101", "resnet152")
EDITS: dict[str, Edit] = {
    "gap_head": Edit(gap_head, ("vgg",)),
    "early_downsampling": Edit(early_downsampling, ("vgg",)),
    "width_cap_256": Edit(width_cap_256, ("vgg",)),
    "basic_wide": Edit(basic_wide, BOTTLENECK_RESNETS),
    "basic_narrow": Edit(basic_narrow, BOTTLENECK_RESNETS),
    "vgg_head": Edit(vgg_head, ("resnet",)),
    "stride_in_1x1": Edit(stride_in_1x1, BOTTLENECK_RESNETS),
    "dense_depthwise": Edit(dense_depthwise),
    "relu6": Edit(partial(_hardswish_to, nn.ReLU6), ("mobilenetv3",)),
    "relu": Edit(partial(_hardswish_to, nn.ReLU), ("mobilenetv3",)),
    "no_se": Edit(no_se, ("mobilenetv3", "efficientnet", "tf_efficientnet")),
    "v2_stem": Edit(v2_stem, ("mobilenetv3_large_100",)),
    "v2_last_stage": Edit(v2_last_stage, ("mobilenetv3_large_100",)),
    "resnet18_widths": Edit(resnet18_widths, ("mobilenetv2_100",)),
    "unit_norms": Edit(unit_norms),
    **{f"{kind}_init": Edit(partial(_redraw, kind)) for kind in WEIGHT_INIT},  # he_init, normal_init, ...
}
