"""Shares of weight and old slices, against networks whose layers are made to use, or to ignore, what is old."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cnnstudy.config import Refused
from cnnstudy.models import DenseConfig, ResNetConfig, build
from cnnstudy.probes import reuse


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    made = build(DenseConfig(34, 4)).eval()  # five layers a block
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.3, 0.3)
            module.running_var.uniform_(0.5, 2.0)
    return made


def test_shares_by_hand() -> None:
    model = net()
    table = reuse.weights(model)
    layer = model.stages[1].layer3  # reads the block's input, layer1, layer2
    c0 = model.stages[1].layer1.c_in
    w = layer.branch.conv1.weight.detach().abs()[:, :, 0, 0]
    means = [float(w[:, :c0].mean()), float(w[:, c0 : c0 + 4].mean()), float(w[:, c0 + 4 :].mean())]
    rows = table[(table["stage"] == 1) & (table["target"] == 3)]
    assert rows["share"].tolist() == pytest.approx([m / sum(means) for m in means], rel=1e-5)
    assert rows["age"].tolist() == [3, 2, 1] and not rows["closing"].any()
    assert table[table["target"] == 6]["closing"].all() and len(table) == 3 * (1 + 2 + 3 + 4 + 5 + 6)


def test_old_share_is_that_of_ages_above_two() -> None:
    model = net()
    for layer in model.layers():
        nn.init.constant_(layer.branch.conv1.weight, -0.5)
    table = reuse.weights(model)
    assert reuse.old_share(table) == pytest.approx((0 + 0 + 1 / 3 + 2 / 4 + 3 / 5) / 5)
    assert reuse.old_share(table, older_than=0) == pytest.approx(1)
    nn.init.zeros_(model.stages[2].layer5.branch.conv1.weight[:, :-8])  # its two newest sources alone
    assert reuse.old_share(reuse.weights(model)) == pytest.approx((3 * (1 / 3 + 2 / 4 + 3 / 5) - 3 / 5) / 15)


def test_scales_of_norms_count_in_the_scaled_share() -> None:
    model = net()
    layer = model.stages[0].layer2
    nn.init.constant_(layer.branch.conv1.weight, 1.0)
    layer.branch.norm1.weight.data[:8] = 0.0  # the block's input is switched off
    rows = reuse.weights(model).query("stage == 0 and target == 2")
    assert rows["share"].tolist() == pytest.approx([0.5, 0.5]) and rows["scaled_share"].tolist() == pytest.approx([0.0, 1.0])


def test_nothing_replaced_is_the_network_itself() -> None:
    model, x = net(), torch.rand(20, 3, 16, 16)
    with torch.no_grad():
        y = model(x).argmax(1)
    means = reuse.means_of(model, x)
    assert reuse.without_old(model, x, y, 0, means) == 1
    assert reuse.without_old(model, x, y, 6, means, closing=True) == 1  # nobody is that old
    torch.testing.assert_close(reuse._run(model, x, 0, means, False)[0], model(x).detach())


def test_ablation_is_what_zero_weights_would_do() -> None:
    """Replacing slices by their means equals taking their weights away and giving the convolution the bias they made on average."""
    model, x = net(), torch.rand(12, 3, 16, 16)
    means = reuse.means_of(model, x)
    twin, _ = net(), None
    for stage, mean in zip(twin.stages, means, strict=True):
        widths = [stage.layer1.c_in]
        for part in list(stage):
            if hasattr(part, "drop"):
                old = sum(widths[:-2])
                part.forward = Without(part, old, mean)  # type: ignore[method-assign]
                widths.append(part.growth)
    with torch.no_grad():
        torch.testing.assert_close(reuse._run(model, x, 2, means, False)[0], twin(x), rtol=1e-4, atol=1e-4)


class Without:
    def __init__(self, layer: nn.Module, old: int, mean: torch.Tensor) -> None:
        self.layer, self.old, self.mean = layer, old, mean

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        b = self.layer.branch
        normed = b.norm1(x).relu()
        mean = torch.cat([self.mean.float(), torch.zeros(x.shape[1])])[: x.shape[1]]
        level = b.norm1(mean.view(1, -1, 1, 1)).relu()
        old = nn.functional.conv2d(level[:, : self.old], b.conv1.weight[:, : self.old]) if self.old else 0
        mixed = nn.functional.conv2d(normed[:, self.old :], b.conv1.weight[:, self.old :]) + old
        return torch.cat([x, b.conv2(b.norm2(mixed).relu())], 1)


def test_means_are_those_of_the_state_at_the_end_of_a_block() -> None:
    model, x = net(), torch.rand(7, 3, 16, 16)
    with torch.no_grad():
        h = model.stem(model.normalize(x))
        for part in list(model.stages[0])[:-1]:
            h = part(h)
    torch.testing.assert_close(reuse.means_of(model, x, batch=3)[0].float(), h.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)


def test_the_model_is_left_alone_and_others_are_refused() -> None:
    model = net().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = reuse.summary(model, torch.rand(6, 3, 16, 16), torch.rand(6, 3, 16, 16), torch.zeros(6, dtype=torch.long))
    assert model.training and all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert {"cost_1", "cost_closing_4", "old_share_uniform"} <= set(found)
    for other in (ResNetConfig(8, 4), DenseConfig(16, 4, window=2)):
        with pytest.raises(Refused, match="no DenseNet whose layers read all"):
            reuse.weights(build(other))
