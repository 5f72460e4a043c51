"""A few networks timed against each other in one sitting, with their fully connected layers as matrix products.

``profiles.zoo_latency`` times a zoo in portions; here all networks take turns in every round, so that two of them can be compared
closely.  And a fully connected layer is what its paper calls it: timm writes VGG's first two as convolutions that cover the
whole map.  The sums and the weights are the same, but eager PyTorch rearranges the weights of a convolution for every
image, four hundred megabytes of them, which has nothing to do with the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from cnnstudy.config import Refused, Setup
from cnnstudy.models.zoo import COMMON, ZooConfig, zoo
from cnnstudy.probes.attribution import counted
from cnnstudy.stopwatch import Runner, race, runner


def linear_head(model: Any) -> nn.Module:
    """timm's VGG with the convolutions ``fc1`` and ``fc2`` of its head as linear layers of the same weights, for 224 x 224.

    Any other network, and a VGG whose head was taken out, is returned as it is.
    """
    hidden: Any = getattr(model, "pre_logits", None)
    if not isinstance(getattr(hidden, "fc1", None), nn.Conv2d):
        return model  # type: ignore[no-any-return]
    layers: list[nn.Module] = [nn.Flatten()]
    for conv in (hidden.fc1, hidden.fc2):
        with torch.device(conv.weight.device):
            linear = nn.Linear(conv.weight[0].numel(), conv.out_channels)
        linear.weight.data, linear.bias.data = conv.weight.data.flatten(1), conv.bias.data
        layers += [linear, nn.ReLU(inplace=True)]
    model.pre_logits = nn.Sequential(*layers, nn.Unflatten(1, (-1, 1, 1)))  # what follows averages a map, here of one pixel
    return model  # type: ignore[no-any-return]


def network(cfg: ZooConfig, linear: bool = True) -> nn.Module:
    """A network of the zoo with random weights; ``linear``: fully connected layers as such, see :func:`linear_head`."""
    if linear and cfg.name.startswith("vgg") and cfg.resolution != COMMON:
        raise Refused(f"VGG's linear layers take images of {COMMON} pixels, not {cfg.resolution}; valid: linear=False")
    return linear_head(zoo(cfg)) if linear else zoo(cfg)


def _ready(setup: Setup) -> Runner:
    x = torch.randn(setup.batch, 3, setup.model.resolution, setup.model.resolution)
    return runner(setup.engine, network(setup.model, setup.linear), x, setup.threads)


def side_by_side(setups: Sequence[Setup], seed: int) -> list[dict[str, Any]]:
    """Experiment "side_by_side", hardware, ``together="model"``: setups that differ in ``model`` (a ZooConfig) alone, in turn.

    They have ``linear``, ``engine`` (of ``stopwatch.ENGINES``), ``batch``, ``threads`` and ``runs``.  For each, what
    ``stopwatch.race`` returns (``latency_ms`` is of the whole batch), and ``images_per_s``; ``gmacs_per_s``: counted multiply-adds a
    second, in 10^9 (engine "train": three passes, the usual estimate); ``macs`` (of one image) and ``params``.
    """
    one = setups[0]
    makers = {str(i): partial(_ready, setup) for i, setup in enumerate(setups)}
    times = race(makers, threads=one.threads, runs=one.runs, warmup=1, seed=seed, cuda="cuda" in one.engine)
    passes = 3 if "train" in one.engine else 1
    results = []
    for i, setup in enumerate(setups):
        ms, costs = times[str(i)]["latency_ms"], counted(setup.model)
        pace = {"images_per_s": 1e3 * one.batch / ms, "gmacs_per_s": passes * one.batch * costs["macs"] / ms / 1e6}
        results.append({**times[str(i)], **pace, "macs": costs["macs"], "params": costs["params"]})
    return results
