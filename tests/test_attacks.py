"""Attacks: inside the ball and [0, 1], never weaker with more eps or steps, agreeing with foolbox, hard to mask."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from cnnstudy.attacks import (
    AttackConfig,
    adversarial,
    curve,
    fgsm,
    minimal_perturbation,
    pgd,
    robust,
    robustness,
    square,
    steepness,
    strong,
    transfer,
)
from cnnstudy.attacks.ball import LOSSES, UNIT
from cnnstudy.attacks.square import side
from cnnstudy.attacks.target import Target, fold, frozen
from cnnstudy.config import Refused

with warnings.catch_warnings():  # foolbox 3.3.4 imports one of its blurs from where SciPy has moved it away
    warnings.filterwarnings("ignore", message="Please import `gaussian_filter`", category=DeprecationWarning)
    import foolbox

CLASSES = 5
SHORT = AttackConfig(eps=6, steps=10, restarts=1, step=0.2, queries=60)


class Toy(nn.Module):
    """Normalisation, then three convolutions with batch norm and one skip: enough for every branch of the folding."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.one, self.norm_one = nn.Conv2d(3, 12, 3, 2, 1, bias=False), nn.BatchNorm2d(12)
        self.two, self.norm_two = nn.Conv2d(12, 12, 3, 1, 1, bias=False), nn.BatchNorm2d(12)
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(12 * 4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu(self.norm_one(self.one((x - 0.5) / 0.25)))
        out = torch.relu(out + self.norm_two(self.two(out)))
        out = self.drop(nn.functional.adaptive_avg_pool2d(out, 2).flatten(1))
        return self.head(out) * self.scale


def images(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Five faint random patterns under noise: learnt in seconds, fooled at a few grey levels."""
    patterns = torch.rand(CLASSES, 3, 16, 16, generator=torch.Generator().manual_seed(99)) - 0.5
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, CLASSES, (count,), generator=generator)
    noise = torch.randn(count, 3, 16, 16, generator=generator)
    return (0.5 + 0.1 * patterns[y] + 0.1 * noise).clamp(0, 1), y


def train(task: Callable[..., dict[str, Tensor]] | None = None, steps: int = 150, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model, (x, y) = Toy(), images(1500, 1)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for step in range(steps):
        part = torch.arange(step * 100, step * 100 + 100) % len(x)
        loss = task(model, (x[part], y[part]))["loss"] if task else nn.functional.cross_entropy(model(x[part]), y[part])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return train()


@pytest.fixture(scope="module")
def batch() -> tuple[Tensor, Tensor]:
    return images(200, 2)


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())


ATTACKS = {"fgsm": fgsm, "pgd": pgd, "square": square}


# what must hold for every attack


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("eps", [0, 0.5, 6, 40, 300])
def test_inside_the_ball_and_the_cube(name: str, eps: float, model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    point = ATTACKS[name](model, x, y, replace(SHORT, eps=eps, steps=4, queries=10))
    assert point.shape == x.shape and point.dtype == torch.float32
    assert float((point - x).abs().max()) <= eps * UNIT + 1e-6
    assert float(point.min()) >= 0 and float(point.max()) <= 1
    if eps == 0:
        assert torch.equal(point, x)
    else:
        assert not torch.equal(point, x)


def test_eps_zero_is_clean_accuracy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    outcome = strong(model, *batch, eps=0, cfg=SHORT)
    assert outcome.accuracy == pytest.approx(accuracy(model, *batch)) and outcome.accuracy > 0.8
    assert torch.equal(robust(model, *batch, AttackConfig(0)), outcome.correct)
    assert set(outcome.stage.tolist()) <= {0, 1}


@pytest.mark.parametrize("name", ["fgsm", "pgd"])
def test_large_eps_leaves_nothing(name: str, model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    point = ATTACKS[name](model, x, y, replace(SHORT, eps=60, steps=20))
    assert accuracy(model, point, y) <= (0.0 if name == "pgd" else 0.2)


def test_robust_accuracy_does_not_rise_with_eps(model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    alone = [strong(model, *batch, eps, SHORT).accuracy for eps in (0, 2, 4, 6, 10)]
    assert all(b <= a + 0.005 for a, b in zip(alone, alone[1:], strict=False)), alone
    assert alone[0] - alone[-1] > 0.5, "the attack does next to nothing"
    nested = list(curve(model, *batch, [10, 4, 0, 6, 2], SHORT).items())
    assert [eps for eps, _ in nested] == [0, 2, 4, 6, 10]
    for (_, small), (_, large) in zip(nested, nested[1:], strict=False):
        assert not bool((large.correct & ~small.correct).any())
    assert [outcome.accuracy for _, outcome in nested] == pytest.approx(alone, abs=0.01)


def test_robust_accuracy_does_not_rise_with_steps_or_restarts(model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    by_steps = [accuracy(model, pgd(model, x, y, replace(SHORT, steps=n)), y) for n in (1, 3, 10, 20, 40)]
    assert all(b <= a + 0.005 for a, b in zip(by_steps, by_steps[1:], strict=False)), by_steps
    assert by_steps[0] - by_steps[-1] > 0.1
    by_restarts = [accuracy(model, pgd(model, x, y, replace(SHORT, steps=3, restarts=n)), y) for n in (1, 2, 4)]
    assert all(b <= a + 0.005 for a, b in zip(by_restarts, by_restarts[1:], strict=False)), by_restarts


@pytest.mark.parametrize("name", ATTACKS)
def test_the_seed_decides(name: str, model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    torch.manual_seed(1)
    first = ATTACKS[name](model, x, y, SHORT)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(first, ATTACKS[name](model, x, y, SHORT)), "a global seed decides"
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state()), "the attack draws from the global generator"
    if name != "fgsm":
        assert not torch.equal(first, ATTACKS[name](model, x, y, replace(SHORT, seed=1)))


def test_the_model_is_left_as_it_was_found(model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    mine = copy.deepcopy(model).train()
    mine.norm_two.eval()  # type: ignore[union-attr]
    mine.head.requires_grad_(False)  # type: ignore[union-attr]
    mine.one.weight.grad = torch.ones_like(mine.one.weight)  # type: ignore[union-attr,arg-type]
    before = copy.deepcopy(mine.state_dict())
    flags = [m.training for m in mine.modules()], [p.requires_grad for p in mine.parameters()]
    for attack in ATTACKS.values():
        attack(mine, x[:20], y[:20], replace(SHORT, queries=5))
    minimal_perturbation(mine, x[:20], y[:20], SHORT, rounds=2)
    strong(mine, x[:20], y[:20], 4, replace(SHORT, queries=5))
    transfer(mine, mine, x[:20], y[:20], SHORT)
    steepness(mine, x[:20], y[:20])
    assert flags == ([m.training for m in mine.modules()], [p.requires_grad for p in mine.parameters()])
    assert all(torch.equal(v, before[k]) for k, v in mine.state_dict().items())
    grads = [p.grad for p in mine.parameters()]
    assert torch.equal(grads[0], torch.ones_like(grads[0])) and all(g is None for g in grads[1:])  # type: ignore[arg-type]
    assert not x.requires_grad and isinstance(mine, Toy)


# an independent implementation


@pytest.mark.parametrize("eps", [1, 2, 4, 8])
def test_agrees_with_foolbox(eps: float, model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    x, y = images(400, 3)
    theirs = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    _, _, fooled = foolbox.attacks.LinfFastGradientAttack()(theirs, x, y, epsilons=eps * UNIT)
    assert accuracy(model, fgsm(model, x, y, AttackConfig(eps)), y) == pytest.approx(1 - float(fooled.float().mean()), abs=0.01)
    torch.manual_seed(0)
    _, _, fooled = foolbox.attacks.LinfPGD(rel_stepsize=0.1, steps=20)(theirs, x, y, epsilons=eps * UNIT)
    ours = accuracy(model, pgd(model, x, y, AttackConfig(eps, steps=20, restarts=1)), y)
    assert ours == pytest.approx(1 - float(fooled.float().mean()), abs=0.01)


# fast, and no weaker for it


def test_folding_gives_the_same_network(model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    exact = frozen(model)
    quick = fold(exact, batch[0][:4])
    assert not any(isinstance(m, nn.BatchNorm2d) for m in quick.modules())
    torch.testing.assert_close(quick(batch[0]), exact(batch[0]), rtol=1e-4, atol=1e-4)


def test_a_network_that_cannot_be_traced_is_attacked_too(batch: tuple[Tensor, Tensor], model: nn.Module) -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) if float(x.detach().mean()) >= 0 else self.inner(-x)

    wild = Branching()
    assert type(fold(frozen(wild), batch[0][:4])) is Branching
    assert strong(wild, *batch, 6, SHORT).accuracy == strong(model, *batch, 6, SHORT).accuracy


def test_folding_leaves_shared_layers_alone(batch: tuple[Tensor, Tensor]) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.a, self.b = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return (self.a(self.conv(x)) + self.b(self.conv(x))).mean((2, 3))

    exact = frozen(Shared())
    quick = fold(exact, batch[0][:4])
    assert sum(isinstance(m, nn.BatchNorm2d) for m in quick.modules()) == 2
    torch.testing.assert_close(quick(batch[0]), exact(batch[0]))


def test_bfloat16_never_calls_an_image_fooled_that_is_not(model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    for eps in (3, 6):
        cfg = replace(SHORT, eps=eps, precision="bf16", steps=20, step=0.1)
        quick, slow = strong(model, *batch, eps, cfg), strong(model, *batch, eps, replace(cfg, precision="fp32"))
        with torch.no_grad():
            assert torch.equal(model(quick.images).argmax(1) == batch[1], quick.correct)
        assert quick.accuracy == pytest.approx(slow.accuracy, abs=0.02)


# strength


def test_strong_is_the_worst_of_its_parts_and_says_which(model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    outcome = strong(model, x, y, 4, SHORT)
    with torch.no_grad():
        assert torch.equal(model(outcome.images).argmax(1) == y, outcome.correct)
    for part in (pgd(model, x, y, replace(SHORT, eps=4)), fgsm(model, x, y, AttackConfig(4))):
        assert outcome.accuracy <= accuracy(model, part, y) + 0.01
    shares = outcome.shares()
    assert sum(shares.values()) == pytest.approx(1) and shares["none"] == outcome.accuracy
    assert shares["clean"] == pytest.approx(1 - accuracy(model, x, y)) and shares["pgd-ce"] > 0.1


def test_a_masked_gradient_does_not_help(model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    """Logits times 1000 saturate the float32 softmax: the gradient of the loss is zero, the network as weak as ever."""
    x, y = batch
    masked = copy.deepcopy(model)
    masked.scale = 1000.0  # type: ignore[assignment]
    cfg = replace(SHORT, eps=6, random_start=False)
    honest = accuracy(model, pgd(model, x, y, cfg), y)
    naive = accuracy(masked, pgd(masked, x, y, cfg), y)
    assert naive > honest + 0.3, "the toy does not mask"
    assert float(steepness(masked, x, y)["loss_zero"].float().mean()) > 0.3
    for adaptive in (replace(cfg, loss="margin"), replace(cfg, loss="dlr"), replace(cfg, temperature=1000.0)):
        assert accuracy(masked, pgd(masked, x, y, adaptive), y) == pytest.approx(honest, abs=0.03)
    outcome = strong(masked, x, y, 6, SHORT)
    assert outcome.accuracy <= honest + 0.01 and outcome.shares()["pgd-margin"] > 0.2
    blind = accuracy(masked, square(masked, x, y, replace(SHORT, eps=10, queries=300)), y)
    assert blind < 0.5, "the black box needs no gradient"


def test_square_gets_better_with_queries_and_follows_its_schedule(model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    rates = [accuracy(model, square(model, *batch, replace(SHORT, eps=8, queries=n)), batch[1]) for n in (0, 20, 400)]
    assert rates[0] == accuracy(model, *batch) and rates[0] > rates[1] > rates[2]
    sides = [side(q, 500, 32, 32) for q in range(500)]
    assert sides[0] == 29 and sides[-1] == 1 and sides == sorted(sides, reverse=True)


def test_minimal_perturbation_is_reached_and_agrees_with_the_curve(model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    size = minimal_perturbation(model, x, y, replace(SHORT, eps=16), rounds=8)
    with torch.no_grad():
        assert torch.equal(size == 0, model(x).argmax(1) != y)
    assert float(size[~size.isinf()].max()) <= 16 + 1e-3
    for eps in (2, 4, 8):
        standing = strong(model, x, y, eps, replace(SHORT, steps=30, step=0.1)).accuracy
        assert float((size > eps).float().mean()) == pytest.approx(standing, abs=0.03)
    assert bool((minimal_perturbation(model, x, y, replace(SHORT, eps=16), rounds=2) >= size - 0.25).all())
    assert set(minimal_perturbation(model, x, y, AttackConfig(0)).tolist()) <= {0.0, float("inf")}


def test_minimal_perturbation_of_a_linear_network_is_exact() -> None:
    """For w.x + b the answer is |margin| / ||w||_1: an exact figure to hold bisection and steepness against."""
    linear = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 2))
    with torch.no_grad():
        torch.manual_seed(0)
        linear[1].weight.normal_()
        x = 0.5 + 0.01 * torch.randn(20, 3, 4, 4)
        logits = linear(x)
    y = logits.argmax(1)
    w = (linear[1].weight[0] - linear[1].weight[1]).abs().sum()
    exact = (logits[:, 0] - logits[:, 1]).abs().detach() / w.detach() / UNIT
    found = minimal_perturbation(linear, x, y, AttackConfig(200, steps=10, restarts=1, step=0.25), rounds=14)
    torch.testing.assert_close(found, exact, rtol=0.01, atol=0.02)
    torch.testing.assert_close(1 / steepness(linear, x, y)["margin_slope"], exact, rtol=1e-3, atol=1e-3)


def test_robustness_is_one_consistent_record(model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    found = robustness(model, *batch, [0.5, 2], SHORT)
    kept, strongest = found["kept"], found["robust_acc"]
    assert isinstance(kept, dict) and isinstance(strongest, dict)
    assert list(strongest) == ["0_5", "2"] and list(kept) == ["0_5", "1", "2", "4", "8"]
    assert found["clean_acc"] == pytest.approx(accuracy(model, *batch))
    assert all(kept[e] == pytest.approx(strongest[e], abs=0.03) for e in strongest)
    assert (kept["1"] > 0.5) == (float(found["median_eps"]) > 1)  # type: ignore[arg-type]
    assert robustness(model, *batch, [], SHORT)["robust_acc"] == {}


def test_transfer_is_between_clean_and_white_box(model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    other = train(seed=5)
    moved = float(transfer(other, model, x, y, SHORT).float().mean())
    white = strong(model, x, y, SHORT.eps, SHORT).accuracy
    assert white - 0.01 <= moved < accuracy(model, x, y)
    assert float(transfer(model, model, x, y, SHORT).float().mean()) == pytest.approx(white, abs=0.05)


# adversarial training


@pytest.mark.parametrize(
    ("cfg", "mix"),
    [(AttackConfig(3, steps=1, step=1.25), 0.0), (AttackConfig(3, steps=4, step=0.4), 0.5)],
    ids=["single-step", "pgd-mix"],
)
def test_adversarial_training_hardens(cfg: AttackConfig, mix: float, model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    hard = train(adversarial(cfg, mix), steps=200)
    assert strong(hard, *batch, 2, SHORT).accuracy > strong(model, *batch, 2, SHORT).accuracy + 0.1


def test_the_task_keeps_the_clean_share_and_the_statistics(model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch[0][:8], batch[1][:8]
    seen: list[Tensor] = []
    mine = copy.deepcopy(model).train()
    mine.drop.p = 0.0  # type: ignore[union-attr,assignment]
    handle = mine.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    before = copy.deepcopy(mine.norm_one.num_batches_tracked)  # type: ignore[union-attr]
    answer = adversarial(AttackConfig(6, steps=3), mix=0.25)(mine, (x, y))
    handle.remove()
    assert set(answer) == {"loss", "logits"} and answer["logits"].shape == (8, CLASSES)
    assert torch.equal(seen[-1][:2], x[:2]) and not torch.equal(seen[-1][2:], x[2:])
    assert float((seen[-1] - x).abs().max()) <= 6 * UNIT + 1e-6 and len(seen) == 4
    assert int(mine.norm_one.num_batches_tracked - before) == 1  # type: ignore[union-attr,operator]
    assert all(p.grad is None for p in mine.parameters()) and mine.training
    plain = adversarial(AttackConfig(0))(mine, (x, y))["loss"]
    torch.testing.assert_close(plain, nn.functional.cross_entropy(mine(x), y))


# refusals: one line


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"eps": -1}, "eps"), ({"eps": float("nan")}, "eps"), ({"steps": 0}, "steps"), ({"restarts": 0}, "restarts"),
        ({"step": 0}, "step"), ({"temperature": -2}, "temperature"), ({"queries": -1}, "queries"),
        ({"loss": "hinge"}, "margin"), ({"precision": "fp8"}, "bf16"),
    ],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, float], word: str) -> None:
    with pytest.raises(Refused, match=word) as refused:
        AttackConfig(**({"eps": 1.0} | wrong))  # type: ignore[arg-type]
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (lambda x, y: (x * 255, y), r"\[0, 1\]"), (lambda x, y: (x - 0.9, y), r"\[0, 1\]"),
        (lambda x, y: (x * float("nan"), y), r"\[0, 1\]"), (lambda x, y: (x.double(), y), "float32"),
        (lambda x, y: ((x * 255).byte(), y), "float32"), (lambda x, y: (x[0], y), "shape"),
        (lambda x, y: (x, y.int()), "int64"), (lambda x, y: (x, y[:-1]), "one for each"),
        (lambda x, y: (x[:0], y[:0]), "no images"), (lambda x, y: (x, y + CLASSES), "labels lie"),
    ],
)  # fmt: skip
def test_bad_batches_are_refused(
    spoil: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], word: str, model: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    x, y = spoil(batch[0][:6], batch[1][:6])
    calls: list[Callable[[], object]] = [lambda a=a: a(model, x, y, SHORT) for a in ATTACKS.values()]  # type: ignore[misc]
    calls += [lambda: strong(model, x, y, 1, SHORT), lambda: minimal_perturbation(model, x, y, SHORT)]
    calls += [lambda: transfer(model, model, x, y, SHORT), lambda: steepness(model, x, y)]
    for call in calls:
        with pytest.raises(Refused, match=word) as refused:
            call()
        assert "\n" not in str(refused.value)


def test_other_refusals(model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(Refused, match="clean share"):
        adversarial(AttackConfig(1), mix=1.0)
    with pytest.raises(Refused, match="no eps"):
        curve(model, *batch, [])
    with pytest.raises(Refused, match="eps"):
        strong(model, *batch, -1)
    with pytest.raises(Refused, match="rounds"):
        minimal_perturbation(model, *batch, SHORT, rounds=0)
    with pytest.raises(Refused, match="logits"):
        pgd(nn.Identity(), *batch, SHORT)
    with pytest.raises(Refused, match=r"\[0, 1\]"):
        adversarial(AttackConfig(1))(model, (batch[0] * 9, batch[1]))


def test_losses_are_above_zero_only_when_fooled() -> None:
    logits, y = torch.randn(50, 4), torch.randint(0, 4, (50,))
    for name in ("margin", "dlr"):
        assert torch.equal(LOSSES[name](logits, y, 1.0) > 0, logits.argmax(1) != y)
        assert torch.equal(LOSSES[name](logits, y, 1.0) > 0, LOSSES[name](logits * 1000, y, 1.0) > 0)
    target = Target(nn.Sequential(nn.Flatten(), nn.Linear(12, 4)), torch.rand(3, 3, 2, 2), y[:3], AttackConfig(1))
    slope, answers = target.gradient(torch.rand(3, 3, 2, 2), y[:3])
    assert slope.shape == (3, 3, 2, 2) and answers.shape == (3, 4)
