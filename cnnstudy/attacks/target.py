"""The network as an attack sees it: one exact copy that judges and one quick copy that is searched.

Attacks spend their time in forward and backward passes of a network that does not change.  So the copy that is
searched has its batch norms folded into the convolutions, needs no gradient of any parameter and lies in
channels-last memory.  The exact copy alone says whether an image is fooled, so no speed-up can turn into robustness or
into weakness.  The network that was passed in is not touched.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from cnnstudy.attacks.ball import LOSSES, AttackConfig
from cnnstudy.config import Refused

BATCH = 64  # images per pass: where a ResNet-20 is fastest on two cores; more leave the cache


def frozen(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode whose parameters need no gradient and hold none."""
    twin = copy.deepcopy(model).eval().requires_grad_(False)
    for parameter in twin.parameters():
        parameter.grad = None
    return twin


def fold(exact: nn.Module, sample: Tensor) -> nn.Module:
    """A copy of the frozen ``exact`` with every batch norm that directly follows a convolution folded into it.

    Falls back to a plain copy when the network cannot be traced, or when the folded one does not give the same logits
    (to float32 rounding) on ``sample``, (N, C, H, W).
    """
    plain = copy.deepcopy(exact)
    try:
        traced = fx.symbolic_trace(copy.deepcopy(exact))
        parts = dict(traced.named_modules())
        calls = [node.target for node in traced.graph.nodes if node.op == "call_module"]
        for node in list(traced.graph.nodes):
            if node.op != "call_module" or not isinstance(parts[node.target], nn.BatchNorm2d):
                continue
            before = node.args[0] if node.args else None
            if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) != 1:
                continue
            conv, norm = parts[str(before.target)], parts[node.target]
            once = calls.count(before.target) == 1 and calls.count(node.target) == 1
            if isinstance(conv, nn.Conv2d) and norm.track_running_stats and once:
                where, _, name = str(before.target).rpartition(".")
                setattr(traced.get_submodule(where), name, fuse_conv_bn_eval(conv, norm))
                node.replace_all_uses_with(before)
                traced.graph.erase_node(node)
        traced.delete_all_unused_submodules()
        traced.recompile()
        with torch.no_grad():
            expected, got = exact(sample), traced(sample)
    except Exception:  # tracing runs the network's own Python, which may raise anything; slower is then the only loss
        return plain
    close = (got - expected).abs().max() <= 1e-3 * (1e-3 + expected.abs().max())
    return traced.requires_grad_(False) if bool(close) else plain


class Target:
    """A network under attack: ``fooled`` judges exactly, ``logits`` and ``gradient`` search quickly."""

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, cfg: AttackConfig) -> None:
        self.exact = frozen(model)
        self.quick = fold(self.exact, x[:4]).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.cfg = cfg
        # depthwise convolutions have no fast backward pass in bfloat16: half as fast as float32 on a CPU
        self.dense = all(m.groups == 1 for m in self.quick.modules() if isinstance(m, nn.Conv2d))
        with torch.no_grad():
            shape = self.exact(x[:1]).shape
        if len(shape) != 2 or shape[1] < 2:
            raise Refused(f"the attacked model answers with shape {tuple(shape)}; valid: logits (N, 2 or more classes)")
        if int(y.min()) < 0 or int(y.max()) >= shape[1]:
            raise Refused(f"labels lie in [{int(y.min())}, {int(y.max())}]; valid: [0, {shape[1] - 1}] for this model")

    @torch.no_grad()
    def fooled(self, x: Tensor, y: Tensor) -> Tensor:
        """Which images the network as given gets wrong in float32, (N,) bool."""
        return torch.cat([self.exact(part).argmax(1) for part in x.split(BATCH)]) != y if len(x) else y != y

    @torch.no_grad()
    def logits(self, x: Tensor, low: bool = False) -> Tensor:
        """Logits of the quick copy, (N, classes) float32; ``low``: computed in bfloat16."""
        with torch.autocast(x.device.type, torch.bfloat16, enabled=low):
            return torch.cat([self.quick(part).float() for part in x.split(BATCH)])

    def gradient(self, x: Tensor, y: Tensor, low: bool = False) -> tuple[Tensor, Tensor]:
        """Gradient of the attack's loss by the image, like ``x``, and the logits; ``low``: bfloat16 where that pays."""
        low = low and self.dense
        loss, gradients, answers = LOSSES[self.cfg.loss], [], []
        for part, labels in zip(x.split(BATCH), y.split(BATCH), strict=True):
            point = part.detach().clone(memory_format=torch.channels_last).requires_grad_()
            with torch.enable_grad():
                with torch.autocast(x.device.type, torch.bfloat16, enabled=low):
                    answer = self.quick(point)
                answer = answer.float()
                total = loss(answer, labels, self.cfg.temperature).sum()
            gradients.append(torch.autograd.grad(total, point)[0])
            answers.append(answer.detach())
        return torch.cat(gradients), torch.cat(answers)
