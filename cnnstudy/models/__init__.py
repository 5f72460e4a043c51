"""Networks by config: ``build(ResNetConfig(depth=56))``.

Small networks for 32 x 32 take pixels in [0, 1] and normalise them in their first module; ``forward`` returns
logits (N, classes), ``features`` the pooled penultimate features (N, C).  Networks for ImageNet are timm's, as they are
(``ImageNetConfig``), changed (``CounterfactualConfig``), or built here where no library has them (``ShuffleNetConfig``).
A new family: one file here, one line below.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from cnnstudy.config import Refused
from cnnstudy.models.bottleneck import BottleneckConfig, Bottlenecks
from cnnstudy.models.chain import Chain, ChainConfig
from cnnstudy.models.counterfactual import COUNTERFACTUALS, CounterfactualConfig, counterfactual
from cnnstudy.models.dense import Dense, DenseConfig
from cnnstudy.models.efficient import EfficientNet, EfficientNetConfig
from cnnstudy.models.imagenet import EDITS, ImageNetConfig, imagenet
from cnnstudy.models.mobile import MobileNetV2, MobileNetV2Config
from cnnstudy.models.mobilenet_v1 import MobileNetV1, MobileNetV1Config
from cnnstudy.models.plain import Vgg, VggConfig
from cnnstudy.models.resnet import ResNet, ResNetConfig
from cnnstudy.models.shuffle import ShuffleConfig, ShuffleMini, ShuffleNet, ShuffleNetConfig
from cnnstudy.models.stacks import StackConfig, Stacks
from cnnstudy.models.variants import Variant, VariantConfig
from cnnstudy.models.vgg import DeepVgg, DeepVggConfig
from cnnstudy.models.wide import Wide, WideConfig

REGISTRY: dict[type, Callable[[Any], nn.Module]] = {
    ResNetConfig: ResNet,
    VariantConfig: Variant,
    BottleneckConfig: Bottlenecks,
    ChainConfig: Chain,
    WideConfig: Wide,
    DenseConfig: Dense,
    VggConfig: Vgg,
    DeepVggConfig: DeepVgg,
    StackConfig: Stacks,
    MobileNetV1Config: MobileNetV1,
    MobileNetV2Config: MobileNetV2,
    EfficientNetConfig: EfficientNet,
    ShuffleConfig: ShuffleMini,
    ShuffleNetConfig: ShuffleNet,
    ImageNetConfig: imagenet,
    CounterfactualConfig: counterfactual,
}


__all__ = [
    "COUNTERFACTUALS",
    "EDITS",
    "REGISTRY",
    "BottleneckConfig",
    "ChainConfig",
    "CounterfactualConfig",
    "DeepVggConfig",
    "DenseConfig",
    "EfficientNetConfig",
    "ImageNetConfig",
    "MobileNetV1Config",
    "MobileNetV2Config",
    "ResNetConfig",
    "ShuffleConfig",
    "ShuffleNetConfig",
    "StackConfig",
    "VariantConfig",
    "VggConfig",
    "WideConfig",
    "build",
]


def build(cfg: Any) -> nn.Module:
    """The network that ``cfg`` describes, randomly initialised from torch's global generator, in training mode.

    Raises Refused when ``cfg`` is not a config of a registered family.
    """
    if type(cfg) not in REGISTRY:
        valid = ", ".join(cls.__name__ for cls in REGISTRY)
        raise Refused(f"build() was given a {type(cfg).__name__}; valid: {valid}")
    return REGISTRY[type(cfg)](cfg)
