"""Timing: what runs, in what order it comes back, and the interval; never how fast."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from torch import nn

from cnnstudy import networks, stopwatch
from cnnstudy.config import Refused
from cnnstudy.models import CounterfactualConfig, ResNetConfig
from cnnstudy.probes.cost import cost


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())


@pytest.mark.parametrize("engine", ["eager", "channels_last", "onnxruntime"])
def test_engines_compute_the_same(engine: str) -> None:
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        expected = small().eval()(x)
    assert np.allclose(np.asarray(stopwatch.runner(engine, small(), x)()), expected, atol=1e-5)


def test_compiled_is_torchs_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling itself takes a minute; what is tested is that the compiled network, and no other, is run."""
    asked = []

    def fake(model: nn.Module, **options: object) -> nn.Module:
        asked.append(options)
        return nn.Sequential(model, nn.ReLU())

    monkeypatch.setattr(torch, "compile", fake)
    monkeypatch.setenv("CXX", "g++")
    x = torch.randn(1, 3, 8, 8)
    run = stopwatch.runner("compiled", nn.Conv2d(3, 4, 1), x)
    assert run().min() >= 0 and asked == [{"dynamic": False}]
    monkeypatch.delenv("CXX")
    monkeypatch.setattr(stopwatch.shutil, "which", lambda name: None)
    with pytest.raises(Refused, match=r"needs a C\+\+ compiler"):
        stopwatch.runner("compiled", nn.Conv2d(3, 4, 1), x)


def test_a_training_step_trains() -> None:
    model, x = nn.Sequential(small(), nn.Flatten(), nn.Linear(4 * 36, 10)), torch.randn(4, 3, 8, 8)
    before = model[2].weight.clone()
    step = stopwatch.runner("train", model, x)
    step()
    assert not torch.equal(before, model[2].weight) and model[2].weight.grad is None and model.training
    given = torch.randn(1, 6, 4, 4, requires_grad=True)
    stopwatch.runner("train", nn.ChannelShuffle(2), given)()  # nothing to train: the gradient goes to the input
    assert given.grad is not None


@pytest.mark.parametrize("n", [6, 9, 20, 30, 101])
def test_interval_of_the_median(n: int) -> None:
    """By counting: the chance that the median lies between two order statistics is a sum of binomial coefficients."""
    samples = list(range(n))
    low, high = stopwatch.median_interval(random.Random(0).sample(samples, n))
    inside = sum(math.comb(n, k) for k in range(int(low) + 1, int(high) + 1)) / 2**n  # ranks from 0
    assert inside >= 0.95 and low + high == n - 1
    narrower = sum(math.comb(n, k) for k in range(int(low) + 2, int(high))) / 2**n
    assert narrower < 0.95
    assert stopwatch.median_interval([3.0, 1.0, 2.0]) == (1.0, 3.0)


def test_race_gives_every_case_in_the_order_asked_for() -> None:
    made: list[str] = []

    def maker(name: str) -> stopwatch.Runner:
        made.append(name)
        return lambda: None

    before = torch.get_num_threads()
    found = stopwatch.race({n: (lambda n=n: maker(n)) for n in "abc"}, {"a": 3, "b": 3, "c": 3}, threads=1, runs=7)  # type: ignore[misc]
    assert list(found) == ["a", "b", "c"] and sorted(made) == ["a", "b", "c"]
    assert all(f["low_ms"] <= f["latency_ms"] <= f["high_ms"] and len(f["samples_ms"]) == f["runs"] == 7 for f in found.values())
    assert torch.get_num_threads() == before


def test_portions_hold_no_more_than_allowed() -> None:
    sizes = {"a": 5, "b": 4, "c": 3, "d": 20}
    some = stopwatch.portions(sizes, most=8, seed=1)
    assert sorted(n for part in some for n in part) == list("abcd")
    assert all(len(part) == 1 or sum(sizes[n] for n in part) <= 8 for part in some)


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Refused, match="unknown engine 'tensorrt'"):
        stopwatch.runner("tensorrt", small(), torch.rand(1, 3, 8, 8))
    with pytest.raises(Refused, match="0: all cores"):
        stopwatch.count_of(-1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(Refused, match="needs a CUDA GPU"):
        stopwatch.runner("cuda_train", small(), torch.rand(1, 3, 8, 8))
    with pytest.raises(Refused, match="at least one sample"):
        stopwatch.median_interval([])


def test_latency_of_the_zoo_is_a_trial() -> None:
    setups = [networks.timed(m, "eager", 2, 1, 3, 32) for m in (ResNetConfig(depth=8), CounterfactualConfig("resnet18", ("cifar_stem",)))]
    found = stopwatch.zoo_latency(setups, 0)
    assert [f["macs"] for f in found] == [cost(s.model, 32)["macs"] for s in setups]
    for one in found:
        assert one["low_ms"] <= one["latency_ms"] <= one["high_ms"] and len(one["samples_ms"]) == 3
        assert one["images_per_second"] == pytest.approx(2e3 / one["latency_ms"])
        assert one["gmacs_per_second"] == pytest.approx(2 * one["macs"] / one["latency_ms"] / 1e6)
    trained = stopwatch.zoo_latency([s.replace({"engine": "train"}) for s in setups[:1]], 0)
    assert trained[0]["gmacs_per_second"] is None
