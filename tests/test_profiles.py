"""Shared measurements: that they agree with the probes behind them, and that their results can be stored."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from cnnstudy import networks, profiles
from cnnstudy.models import CounterfactualConfig, ResNetConfig, ShuffleNetConfig
from cnnstudy.models.zoo import ZooConfig
from cnnstudy.probes import memory
from cnnstudy.probes.cost import cost


@pytest.mark.parametrize(
    "setup",
    [
        networks.at(ZooConfig("mobilenetv2_100", 64)),
        networks.at(CounterfactualConfig("resnet50", ("no_skip",)), 64),
        networks.at(ShuffleNetConfig(), 64),
        networks.at(ResNetConfig(depth=8), 32),
    ],
)
def test_profile_adds_up(setup: Any) -> None:
    found = profiles.zoo_profile(setup, 0)
    resolution = setup.resolution
    for by in ("role", "size", "stage"):
        assert sum(found[f"macs_by_{by}"].values()) == found["macs"]
        assert sum(found[f"activations_by_{by}"].values()) == found["activations"]
        assert sum(found[f"weights_by_{by}"].values()) == found["conv_weights"] + found["linear_weights"]
    assert sum(found["macs_by_kernel"].values()) == found["macs"]
    assert sum(found["layers_by_kernel"].values()) == found["weighted_layers_all"]
    assert found["conv_weights"] + found["linear_weights"] + found["biases"] + found["norms"] == found["params"]
    if not isinstance(setup.model, ZooConfig):
        assert found["macs"] == cost(setup.model, resolution)["macs"]
    assert found["elements"] > found["conv_elements"] > 0
    json.dumps(found)


def test_memory_agrees_with_the_ledger() -> None:
    setup = networks.at(ZooConfig("mobilenetv2_100", 64))
    found, ledger = profiles.zoo_memory(setup, 0), memory.training(setup.model, 64, 2)
    assert 2 * found["saved_per_image"] + found["saved_fixed"] == ledger["saved_bytes"]
    assert found["training_peak_bytes"] == ledger["peak_activation_bytes"] == found["training_timeline"].max()
    assert sum(found["saved_by_size"].values()) == pytest.approx(ledger["saved_bytes"] / 2)
    assert sum(found["saved_by_kind"].values()) == pytest.approx(ledger["saved_bytes"] / 2)
    for mode in ("eager", "folded"):
        assert max(found[f"{mode}_by_block"].values()) == found[f"{mode}_peak_bytes"]
        assert found[f"{mode}_peak_bytes"] == memory.inference(setup.model, 64, 1, mode)["peak_bytes"]
    assert found["expanded_saved_share"] > 0.5
    arrays = {n for n, value in found.items() if isinstance(value, np.ndarray)}
    assert arrays == {"training_timeline", "eager_timeline", "folded_timeline"}
    json.dumps({n: v for n, v in found.items() if n not in arrays})
    assert profiles.zoo_memory(networks.at(ResNetConfig(depth=8), 32), 0)["expanded_saved_share"] is None
