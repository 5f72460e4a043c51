"""One training loop, with its parts passed in: a task says what the loss is, hooks look on or step in.

``fit(model, data, recipe, task, hooks)`` trains in memory with batched augmentation, channels_last and, where the
recipe says so, bf16.  Adversarial training, distillation and quantisation-aware training are tasks; gradient
logging and gradient normalisation are hooks.  ``trained(...)`` keeps networks by key, outside the repository.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnstudy.config import Refused, Setup, choose, key
from cnnstudy.data import Data, batches, load
from cnnstudy.fetch import cache_root
from cnnstudy.models import build
from cnnstudy.runtime import device as default_device
from cnnstudy.runtime import seed_all
from cnnstudy.weights import read_weights

Task = Callable[[nn.Module, tuple[Tensor, Tensor]], Mapping[str, Tensor]]

PROTOCOL = 1  # raised when the meaning of a checkpoint changes


class Diverged(ArithmeticError):
    """The loss became NaN or infinite; the measurement is recorded as failed, never as a number."""

    def __init__(self, step: int, loss: float) -> None:
        self.step = step
        super().__init__(f"loss became {loss} at step {step}")


def onecycle(t: float) -> float:
    """Linear up over the first quarter, linear down to zero; ``t`` is the share of training done."""
    return t / 0.25 if t < 0.25 else (1.0 - t) / 0.75


def step(t: float) -> float:
    """The ResNet paper's: divided by ten at one half and at three quarters (He et al. 2016, section 4.2)."""
    return 1.0 if t < 0.5 else 0.1 if t < 0.75 else 0.01


def constant(t: float) -> float:
    """No schedule."""
    return 1.0


SCHEDULES: dict[str, Callable[[float], float]] = {"onecycle": onecycle, "step": step, "constant": constant}


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: SGD with momentum, one schedule, batched augmentation.

    ``steps`` caps the number of updates (0: ``epochs`` decides); ``lr`` is the peak learning rate for ``batch`` images;
    ``precision`` is "fp32" or "bf16" (autocast); ``augment`` shifts by up to 4 pixels and flips.
    """

    epochs: int = 10
    batch: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    schedule: str = "onecycle"
    label_smoothing: float = 0.0
    augment: bool = True
    precision: str = "fp32"
    steps: int = dataclasses.field(default=0, metadata={"neutral": 0})


@dataclass
class Run:
    """A trained model, one dict per epoch (``epoch, loss, acc, lr``), and the seconds that training took."""

    model: nn.Module
    history: list[dict[str, float]]
    seconds: float


class Hook:
    """What may look on while a model is trained.  Methods do nothing unless a subclass says otherwise."""

    def on_backward(self, model: nn.Module, step: int) -> None:
        """After the gradients of a step are there, before the weights change."""

    def on_epoch(self, model: nn.Module, epoch: int) -> None:
        """After an epoch (counted from 1; 0 is before training); the model may be evaluated, but is in training mode again afterwards."""


def classify(smoothing: float = 0.0) -> Task:
    """The task of plain classification: cross-entropy, with ``smoothing`` spread over the classes."""

    def task(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Mapping[str, Tensor]:
        x, y = batch
        logits = model(x)
        return {"loss": F.cross_entropy(logits.float(), y, label_smoothing=smoothing), "logits": logits}

    return task


def fit(model: nn.Module, data: Data, recipe: Recipe, task: Task | None = None, hooks: Sequence[Hook] = (), seed: int = 0) -> Run:
    """Train ``model`` in place on ``data.x_train`` (N, 3, H, W), values in 0..1.

    ``task`` defaults to cross-entropy with the recipe's label smoothing.  ``seed`` decides order and augmentation.
    Raises Diverged at the end of an epoch in which the loss was not finite, naming the step.
    """
    factor = SCHEDULES[choose("schedule", recipe.schedule, SCHEDULES)]
    choose("precision", recipe.precision, ("fp32", "bf16"))
    task = task or classify(recipe.label_smoothing)
    where = data.x_train.device
    model.to(device=where, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(
        (p for p in model.parameters() if p.requires_grad),
        lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay,
        nesterov=recipe.nesterov and recipe.momentum > 0, fused=True,
    )  # fmt: skip
    batch = min(recipe.batch, len(data.x_train))
    total = recipe.steps or len(data.x_train) // batch * recipe.epochs
    generator = torch.Generator(device=where).manual_seed(seed)
    history: list[dict[str, float]] = []
    for hook in hooks:
        hook.on_epoch(model, 0)
        model.train()
    started, done = time.perf_counter(), 0
    while done < total:
        losses, right = [], torch.zeros((), device=where)
        for x, y in itertools.islice(batches(data, batch, generator, recipe.augment), total - done):
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr * factor((done + 0.5) / total)
            with torch.autocast(where.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
                out = task(model, (x, y))
            optimizer.zero_grad(set_to_none=True)
            out["loss"].backward()
            for hook in hooks:
                hook.on_backward(model, done)
            optimizer.step()
            losses.append(out["loss"].detach())
            right += (out["logits"].detach().argmax(1) == y).sum()
            done += 1
        trace = torch.stack(losses).float().cpu()  # one synchronisation an epoch, not one a step
        bad = (~trace.isfinite()).nonzero()
        if len(bad):
            raise Diverged(done - len(losses) + int(bad[0]), float(trace[int(bad[0])]))
        history.append({
            "epoch": len(history) + 1, "loss": float(trace.mean()), "acc": float(right) / (len(losses) * batch),
            "lr": optimizer.param_groups[0]["lr"],
        })  # fmt: skip
        report_progress(done, total, time.perf_counter() - started)
        for hook in hooks:
            hook.on_epoch(model, len(history))
            model.train()
    return Run(model.eval(), history, time.perf_counter() - started)


def report_progress(done: int, total: int, seconds: float) -> None:
    """One line for the runner to show (the file that CNNSTUDY_TICK names), or nothing."""
    path = os.environ.get("CNNSTUDY_TICK")
    if path:
        Path(path).write_text(json.dumps({"done": done, "total": total, "seconds": seconds}))


@torch.no_grad()
def evaluate(model: nn.Module, x: Tensor, y: Tensor, batch: int = 500) -> dict[str, float]:
    """Accuracy (0..1) and mean cross-entropy (nats) in evaluation mode; the mode is put back afterwards."""
    was = model.training
    model.eval()
    right, loss = 0.0, 0.0
    for xs, ys in zip(x.split(batch), y.split(batch), strict=True):
        logits = model(xs.contiguous(memory_format=torch.channels_last)).float()
        right += float((logits.argmax(1) == ys).sum())
        loss += float(F.cross_entropy(logits, ys, reduction="sum"))
    model.train(was)
    return {"acc": right / len(x), "loss": loss / len(x)}


def scores(model: nn.Module, data: Data) -> dict[str, float]:
    """``train_acc, train_loss, val_acc, val_loss`` of a trained model, without augmentation."""
    seen, unseen = evaluate(model, data.x_train, data.y_train), evaluate(model, data.x_test, data.y_test)
    found = {"train_acc": seen["acc"], "train_loss": seen["loss"], "val_acc": unseen["acc"], "val_loss": unseen["loss"]}
    if not all(math.isfinite(v) for v in found.values()):
        raise Diverged(-1, seen["loss"])
    return found


def checkpoint_path(name: str, setup: Setup, seed: int) -> Path:
    """Where the network of a setup is kept: outside the repository, by key."""
    return cache_root() / "checkpoints" / f"{key(f'checkpoint:{name}', setup, seed, PROTOCOL)}.safetensors"


def trained(setup: Setup, seed: int, task: Task | None = None, task_name: str = "classify", tag: object = None) -> Run:
    """The network of ``setup.model, setup.data, setup.recipe``, trained once and kept.

    A task other than cross-entropy needs a ``task_name`` and, where it has settings, its config as ``tag``: both go
    into the checkpoint's key.  A damaged checkpoint is refused by name, never silently trained again.
    """
    from safetensors.torch import save_file

    parts = Setup(model=setup.model, data=setup.data, recipe=setup.recipe, **({} if tag is None else {"task": tag}))
    path = checkpoint_path(task_name, parts, seed)
    where = default_device()
    seed_all(seed)
    model = build(setup.model)
    if path.exists():
        try:
            model.load_state_dict(read_weights(path))
            history = json.loads(path.with_suffix(".json").read_text("utf-8"))
        except (RuntimeError, OSError, ValueError) as error:
            raise Refused(f"checkpoint {path.name} cannot be read ({error}); delete it to train anew") from None
        model.to(device=where, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return Run(model.eval(), history["history"], history["seconds"])
    run = fit(model, load(setup.data, where, seed), setup.recipe, task, seed=seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}")
    path.with_suffix(".json").write_text(json.dumps({"history": run.history, "seconds": run.seconds}))
    save_file({k: v.contiguous() for k, v in run.model.state_dict().items()}, part)
    os.replace(part, path)
    return run
