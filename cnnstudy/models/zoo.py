"""The zoo: published ImageNet networks, each with the resolution at which it is used.

timm's where timm has the network, torchvision's for the families that timm lacks (ShuffleNetV2, SqueezeNet).
Weights are random: what a network costs does not depend on them.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from torch import nn

from cnnstudy.config import Refused
from cnnstudy.models.imagenet import ImageNetConfig, imagenet
from cnnstudy.models.torchvision_mend import import_timm, import_torchvision

# Input sizes of the publications; all others take 224.  EfficientNet: arXiv:1905.11946 and its code; Lite: its release.
NATIVE = {
    "efficientnet_b1": 240, "efficientnet_b2": 260, "efficientnet_b3": 300, "efficientnet_b4": 380,
    "efficientnet_b5": 456, "efficientnet_b6": 528, "efficientnet_b7": 600,
    "efficientnet_lite1": 240, "efficientnet_lite2": 260, "efficientnet_lite3": 300, "efficientnet_lite4": 380,
}  # fmt: skip
COMMON = 224  # pixels at which all are compared
FROM_TORCHVISION = (
    "shufflenet_v2_x0_5", "shufflenet_v2_x1_0", "shufflenet_v2_x1_5", "shufflenet_v2_x2_0", "squeezenet1_0", "squeezenet1_1",
)  # fmt: skip


@dataclass(frozen=True)
class ZooConfig:
    """``name``: timm's, or one of ``FROM_TORCHVISION``; ``resolution``: pixels a side; ``edits``: as in ImageNetConfig."""

    name: str = "resnet50"
    resolution: int = COMMON
    edits: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "edits", tuple(self.edits))  # JSON has lists
        if self.resolution < 1:
            raise Refused(f"resolution {self.resolution} of {self.name} must be at least 1 pixel")
        if self.edits and self.name in FROM_TORCHVISION:
            raise Refused(f"{self.name} comes from torchvision and takes no edits; got {', '.join(self.edits)}")


def native(name: str) -> ZooConfig:
    """The network at the resolution of its publication."""
    return ZooConfig(name, NATIVE.get(name, COMMON))


def zoo(cfg: ZooConfig) -> nn.Module:
    """The network of ``cfg``: (N, 3, H, W), normalised -> logits (N, 1000).  Works under ``torch.device("meta")``.

    Raises Refused for a name that neither library has.
    """
    if cfg.name in FROM_TORCHVISION:
        network: nn.Module = import_torchvision().models.get_model(cfg.name, weights=None)
        return network
    if not import_timm().is_model(cfg.name):
        known = [*import_timm().list_models(), *FROM_TORCHVISION]
        close = ", ".join(difflib.get_close_matches(cfg.name, known, n=3, cutoff=0.5)) or "see timm.list_models()"
        raise Refused(f"unknown network {cfg.name!r} in the zoo; closest: {close}")
    return imagenet(ImageNetConfig(cfg.name, cfg.edits))
