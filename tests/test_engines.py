import numpy as np
import pytest
import torch

from cnnstudy import engines
from cnnstudy.config import Refused
from cnnstudy.models.zoo import ZooConfig

SMALL = ZooConfig("mobilenetv3_small_050", 64)


def test_both_engines_compute_the_same_logits() -> None:
    found = []
    for engine in ("eager", "onnxruntime"):
        torch.manual_seed(0)
        found.append(np.asarray(engines.runner(engine, SMALL, batch=2)()))
    assert found[0].shape == (2, 1000)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-3, atol=1e-5 * abs(found[0]).max())


def test_latency_is_given_in_the_order_asked_for_with_its_costs() -> None:
    before = torch.get_num_threads()
    networks = [ZooConfig("squeezenet1_1", 96), SMALL]
    found = engines.latency(networks, "eager", runs=3)
    assert [len(f["samples_ms"]) for f in found] == [3, 3]
    assert all(f["q25_ms"] <= f["latency_ms"] <= f["q75_ms"] for f in found)
    assert found[0]["macs"] > found[1]["macs"]
    assert found[1]["memory_mb"] > 4 * found[1]["params"] / 1e6
    assert torch.get_num_threads() == before


def test_portions_hold_all_networks_and_no_more_weights_than_allowed() -> None:
    networks = [ZooConfig(name) for name in ("squeezenet1_1", "resnet18", "mobilenetv2_100", "vgg11")]
    some = engines.portions(networks, most=20_000_000, seed=1)
    assert sorted(n.name for one in some for n in one) == sorted(n.name for n in networks)
    assert all(len(one) == 1 or sum(engines.counted(n)["params"] for n in one) <= 20_000_000 for one in some)
    assert engines.portions(networks, most=20_000_000, seed=1) == some


def test_unknown_engines_and_missing_hardware_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Refused, match="unknown engine 'tensorrt'"):
        engines.runner("tensorrt", SMALL)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(Refused, match="needs a CUDA GPU"):
        engines.runner("cuda", SMALL)
