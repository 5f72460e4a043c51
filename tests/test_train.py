from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnstudy.config import Refused, Setup
from cnnstudy.data import CifarConfig, Data, load
from cnnstudy.hooks import NormalizeGradients, SignalLog, freeze_first_third
from cnnstudy.models import ResNetConfig, build
from cnnstudy.probes.gradients import spatial_convs
from cnnstudy.train import Diverged, Hook, Recipe, checkpoint_path, evaluate, fit, onecycle, scores, step, trained

TINY = ResNetConfig(depth=8, width=4)


@pytest.fixture(scope="module")
def images() -> Data:
    return load(CifarConfig(train=200, test=100))


def fresh(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build(TINY)


def test_it_learns(images: Data) -> None:
    before = evaluate(fresh(), images.x_train, images.y_train)
    run = fit(fresh(), images, Recipe(epochs=12, batch=50, lr=0.1, augment=False))
    after = scores(run.model, images)
    assert after["train_loss"] < 0.8 * before["loss"]
    assert after["train_acc"] > before["acc"] + 0.1
    assert [e["epoch"] for e in run.history] == list(range(1, 13))


def test_same_seed_same_network(images: Data) -> None:
    recipe = Recipe(epochs=1, batch=50)
    one, two, three = (fit(fresh(), images, recipe, seed=s).model for s in (0, 0, 1))
    assert torch.equal(one.head.weight, two.head.weight)
    assert not torch.equal(one.head.weight, three.head.weight)


def test_steps_cap_the_number_of_updates(images: Data) -> None:
    class Count(Hook):
        seen = 0

        def on_backward(self, model: nn.Module, step: int) -> None:
            assert step == self.seen
            self.seen += 1

    count = Count()
    fit(fresh(), images, Recipe(epochs=99, steps=6, batch=50), hooks=[count])
    assert count.seen == 6


def test_bf16_trains_fp32_weights(images: Data) -> None:
    run = fit(fresh(), images, Recipe(epochs=1, batch=50, precision="bf16"))
    assert all(p.dtype == torch.float32 for p in run.model.parameters())


@pytest.mark.parametrize("change", [{"schedule": "cosin"}, {"precision": "fp8"}])
def test_unknown_names_are_refused(images: Data, change: dict[str, str]) -> None:
    with pytest.raises(Refused, match="valid"):
        fit(fresh(), images, Recipe(**change))  # type: ignore[arg-type]


def test_a_loss_that_is_not_finite_stops_and_names_the_step(images: Data) -> None:
    calls = 0

    def task(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Mapping[str, Tensor]:
        nonlocal calls
        calls += 1
        logits = model(batch[0])
        return {"loss": F.cross_entropy(logits, batch[1]) * (float("nan") if calls == 6 else 1.0), "logits": logits}

    with pytest.raises(Diverged, match="nan at step 5"):
        fit(fresh(), images, Recipe(epochs=3, batch=50), task)


def test_schedules() -> None:
    assert [onecycle(t) for t in (0.0, 0.25, 1.0)] == [0.0, 1.0, 0.0]
    assert [step(t) for t in (0.4, 0.6, 0.9)] == [1.0, 0.1, 0.01]


def test_evaluate_leaves_the_mode(images: Data) -> None:
    model = fresh().train()
    evaluate(model, images.x_test, images.y_test)
    assert model.training


def test_signal_log_and_its_epochs(images: Data) -> None:
    log = SignalLog(images.x_train, images.y_train, at={0, 1})
    fit(fresh(), images, Recipe(epochs=2, batch=50), hooks=[log])
    found = log.summary()
    assert found["signal_epochs"] == [0, 1]
    assert len(found["relative_thirds"]) == 2  # type: ignore[arg-type]
    assert found["relative"].shape == (2, len(spatial_convs(fresh())))  # type: ignore[attr-defined]


def test_normalised_gradients_have_the_asked_share(images: Data) -> None:
    class Check(Hook):
        def on_backward(self, model: nn.Module, step: int) -> None:
            for weight in model.parameters():
                if weight.ndim > 1:
                    assert float((weight.grad.norm() / weight.norm()).detach()) == pytest.approx(0.02, rel=1e-4)  # type: ignore[union-attr]

    fit(fresh(), images, Recipe(epochs=1, batch=100), hooks=[NormalizeGradients(0.02), Check()])
    with pytest.raises(Refused, match="above 0"):
        NormalizeGradients(0)


def test_frozen_third_does_not_move(images: Data) -> None:
    model = freeze_first_third(fresh())
    before = {n: p.clone() for n, p in model.named_parameters()}
    fit(model, images, Recipe(epochs=1, batch=50))
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen and moved and not frozen & moved
    convs = list(spatial_convs(model))
    assert [f"{c}.weight" in frozen for c in convs] == [i < len(convs) // 3 for i in range(len(convs))]


def test_trained_networks_are_kept_by_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CNNSTUDY_CACHE", str(tmp_path))
    setup = Setup(model=TINY, data=CifarConfig(train=100, test=50), recipe=Recipe(epochs=1, batch=50))
    first = trained(setup, 0)
    again = trained(setup, 0)
    assert torch.equal(first.model.head.weight, again.model.head.weight)
    assert again.seconds == first.seconds and again.history == first.history
    path = checkpoint_path("classify", setup, 0)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(Refused, match=path.name):
        trained(setup, 0)
