"""Speed of FGSM and PGD-20 against foolbox and torchattacks, on the CIFAR ResNet-20 and images of the embedded sample.

    python benchmarks/attack_speed.py [--images 128] [--runs 3] [--epochs 3]

Each line: attack, eps, network, who, images per second (median of interleaved runs), accuracy left.  The networks are
trained here for a few epochs: one plainly (most images fall at once), one adversarially (most stand to the end).
torchattacks is left out where it is not installed: it asks for an old release of requests, so it is no part of the
project's environment (``pip install --no-deps torchattacks``).
"""

from __future__ import annotations

import argparse
import platform
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from results import keep as keep_result
from torch import Tensor, nn

from cnnstudy.attacks import AttackConfig, adversarial, fgsm, pgd
from cnnstudy.data import CifarConfig, load
from cnnstudy.models import ResNetConfig, build
from cnnstudy.runtime import cpu_name, device, gpu_name, seed_all
from cnnstudy.timing import benchmark, summary
from cnnstudy.train import Recipe, fit

with warnings.catch_warnings():  # foolbox 3.3.4 imports one of its blurs from where SciPy has moved it away
    warnings.simplefilter("ignore", DeprecationWarning)
    import foolbox

    try:
        import torchattacks
    except ImportError:
        torchattacks = None


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of right answers, 0..1."""
    with torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())


def keep(made: dict[str, Tensor], name: str, case: Callable[[], Tensor]) -> None:
    """Run a case and put aside what it made."""
    made[name] = case()


def contestants(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> dict[str, Callable[[], Tensor]]:
    """What is timed, by name; each returns the attacked images."""
    theirs = foolbox.PyTorchModel(model, bounds=(0, 1), device=x.device)
    steep, slow = foolbox.attacks.LinfFastGradientAttack(), foolbox.attacks.LinfPGD(rel_stepsize=0.1, steps=20)
    one, many = AttackConfig(eps), AttackConfig(eps, steps=20, restarts=1)
    other: dict[str, Callable[[], Tensor]] = {}
    if torchattacks:
        step = eps / 255 / 10
        other = {
            "FGSM torchattacks": partial(torchattacks.FGSM(model, eps=eps / 255), x, y),
            "PGD-20 torchattacks": partial(torchattacks.PGD(model, eps=eps / 255, alpha=step, steps=20), x, y),
        }
    return other | {
        "FGSM foolbox": lambda: steep(theirs, x, y, epsilons=eps / 255)[1],
        "FGSM fp32": lambda: fgsm(model, x, y, one),
        "FGSM bf16": lambda: fgsm(model, x, y, replace(one, precision="bf16")),
        "PGD-20 foolbox": lambda: slow(theirs, x, y, epsilons=eps / 255)[1],
        "PGD-20 fp32": lambda: pgd(model, x, y, many),
        "PGD-20 bf16": lambda: pgd(model, x, y, replace(many, precision="bf16")),
    }


NETWORKS = {"plain": (None, 1.0), "robust": (adversarial(AttackConfig(4, steps=1, step=1.25)), 4.0)}  # task, eps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3)
    args = parser.parse_args()
    where, data = device(), load(CifarConfig(train=2000, test=1000), device())
    x, y = data.x_test[: args.images], data.y_test[: args.images]
    print(
        f"{gpu_name() or cpu_name()}, {torch.get_num_threads()} threads, Python {platform.python_version()}, "
        f"torch {torch.__version__}, foolbox {foolbox.__version__}, ResNet-20, {len(x)} images, n = {args.runs} runs"
    )
    for kind, (task, eps) in NETWORKS.items():
        seed_all(0)
        model = build(ResNetConfig(depth=20)).to(where)
        fit(model, data, Recipe(epochs=args.epochs), task)
        print(f"{kind} network: {accuracy(model, x, y):.3f} of the images right before any attack", flush=True)
        made: dict[str, Tensor] = {}
        cases = {name: partial(keep, made, name, case) for name, case in contestants(model, x, y, eps).items()}
        medians = {name: summary(s)["median_ms"] for name, s in benchmark(cases, args.runs, warmup=0).items()}
        for rival in ("foolbox", "torchattacks"):
            those = {f"{n} against {rival}": m for n, m in medians.items() if n.endswith(("fp32", "bf16"))}
            if any(n.endswith(rival) for n in medians):
                ratios = {n: float(medians[f"{n.split()[0]} {rival}"]) / float(m) for n, m in those.items()}  # type: ignore[arg-type]
                keep_result(f"attacks, {kind} network", ratios, images=len(x), eps=eps)
        for name, taken in medians.items():
            base = medians[name.split()[0] + " foolbox"]
            rate, ratio = len(x) / float(taken) * 1e3, float(base) / float(taken)  # type: ignore[arg-type]
            left = accuracy(model, made[name], y)
            print(f"{kind:6} eps {eps:g}  {name:19} {rate:7.0f} images/s  {ratio:5.2f}x  accuracy left {left:.3f}")


if __name__ == "__main__":
    main()
