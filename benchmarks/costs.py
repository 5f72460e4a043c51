"""Counting what 30 timm networks cost, against FlopCounterMode on real tensors (a forward pass on this processor).

    python benchmarks/costs.py [--models 30] [--runs 1]
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
from results import in_turns, keep
from torch.utils.flop_counter import FlopCounterMode

from cnnstudy.models import build
from cnnstudy.models.imagenet import ImageNetConfig
from cnnstudy.probes.cost import cost

MODELS = [
    "resnet18", "resnet34", "resnet50", "resnet101", "resnext50_32x4d", "wide_resnet50_2", "densenet121", "mobilenetv1_100",
    "mobilenetv2_100", "mobilenetv2_140", "mobilenetv3_small_100", "mobilenetv3_large_100", "efficientnet_b0", "efficientnet_b1",
    "efficientnet_b2", "efficientnet_lite0", "efficientnet_lite1", "mnasnet_100", "regnetx_002", "regnetx_004", "regnetx_008",
    "regnetx_016", "regnety_004", "regnety_008", "regnety_016", "vgg11", "vgg13", "vgg16", "vgg19", "vgg11_bn",
]  # fmt: skip


def real(name: str) -> int:
    """MACs by torch's counter over a real forward pass."""
    model = build(ImageNetConfig(name)).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, 224, 224))
    return counter.get_total_flops() // 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=len(MODELS))
    parser.add_argument("--runs", type=int, default=1)
    args = parser.parse_args()
    chosen, found = MODELS[: args.models], {}
    cost(ImageNetConfig(chosen[0]), 224)  # imports and first-time work of torch

    def ours() -> None:
        found["ours"] = [cost(ImageNetConfig(name), 224)["macs"] for name in chosen]

    def theirs() -> None:
        found["theirs"] = list(map(partial(real), chosen))

    seconds = in_turns({"ours": ours, "theirs": theirs}, args.runs)
    differing = [n for n, a, b in zip(chosen, found["ours"], found["theirs"], strict=True) if a != b]
    ms = round(seconds["ours"] / len(chosen) * 1e3)
    ratios = {"against a counted forward pass": seconds["theirs"] / seconds["ours"]}
    keep("costs", ratios, ms_a_model=ms, models=len(chosen), differing=differing)


if __name__ == "__main__":
    main()
