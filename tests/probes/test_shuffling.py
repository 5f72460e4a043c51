"""Channel shuffles: found by what they do, taken out, and followed through a stack."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cnnstudy.config import Refused
from cnnstudy.models import ResNetConfig, ShuffleConfig, ShuffleNetConfig, build
from cnnstudy.models.zoo import ZooConfig
from cnnstudy.probes import mixing, shuffling


class Moved(nn.Module):
    """One convolution, then the channels moved in one of several ways."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.conv, self.how = nn.Conv2d(3, 6, 1), how

    def forward(self, x: Tensor) -> Any:
        x = self.conv(x)
        n, c, h, w = x.shape
        wide = x.view(n, 2, c // 2, h, w)
        return {
            "transposed": lambda: wide.transpose(1, 2).reshape(n, c, h, w),
            "backwards": lambda: torch.transpose(wide, -3, 1).flatten(1, 2),
            "permuted": lambda: wide.permute(0, 2, 1, 3, 4).flatten(1, 2),
            "permuted list": lambda: wide.permute((0, 2, 1, 3, 4)).flatten(1, 2),
            "torch": lambda: nn.functional.channel_shuffle(x, 3),
            "indexed": lambda: x[:, torch.tensor([5, 4, 3, 2, 1, 0])],
            "selected": lambda: x.index_select(1, torch.tensor([5, 4, 3, 2, 1, 0])),
            "spatial": lambda: x.transpose(2, 3),
            "other axes": lambda: wide.transpose(3, 4).flatten(1, 2),
            "sliced": lambda: x[:, :4],
            "halved": lambda: torch.cat(x.chunk(2, dim=1), 1),
            "halved rows": lambda: torch.cat(x.chunk(2, 2), 2),
        }[self.how]()


@pytest.mark.parametrize("how", ["transposed", "backwards", "permuted", "permuted list", "torch", "indexed", "selected"])
def test_a_shuffle_is_heard_however_it_is_written(how: str) -> None:
    assert shuffling.heard(Moved(how), 4) == ["shuffle"]


@pytest.mark.parametrize(("how", "what"), [("spatial", []), ("other axes", []), ("sliced", []), ("halved", ["split"]), ("halved rows", [])])
def test_what_moves_no_channels_is_none(how: str, what: list[str]) -> None:
    assert shuffling.heard(Moved(how), 4) == what


def test_shuffles_are_counted_unit_by_unit() -> None:
    with torch.device("meta"):
        first, second = build(ShuffleNetConfig(3)), shuffling.network(ZooConfig("shufflenet_v2_x1_0"))
    one, two = shuffling.units(first), shuffling.units(second)
    assert (one["units"], one["shuffles"], one["every_unit_shuffles"], one["splits"]) == (16, 16, True, 0)
    assert one["pointwise"] == 32 and one["grouped_pointwise"] == 31 and one["pointwise_groups"] == [1, 3]  # the first 1x1 is dense
    assert (two["units"], two["shuffles"], two["every_unit_shuffles"], two["splits"]) == (16, 16, True, 13)
    assert two["grouped_pointwise"] == 0 and two["spatial_groups"] == []
    assert first.training and not list(first.modules())[1]._forward_hooks
    with pytest.raises(Refused, match="no module of a class"):
        shuffling.units(build(ResNetConfig(8)))


def test_the_source_is_read_too() -> None:
    assert shuffling.mentions(shuffling.network(ZooConfig("shufflenet_v2_x0_5"))) == ["InvertedResidual", "ShuffleNetV2"]
    with torch.device("meta"):
        assert shuffling.mentions(shuffling.network(ZooConfig("mobilenetv2_050"))) == []


@pytest.mark.parametrize("cfg", [ZooConfig("shufflenet_v2_x0_5"), ShuffleConfig(4, channels=32), ShuffleConfig(4, "random", 32)])
def test_a_shuffle_taken_out_leaves_the_weights(cfg: Any) -> None:
    model = shuffling.network(cfg).eval()
    twin = shuffling.unshuffled(model)
    assert "shuffle" in shuffling.heard(model) and "shuffle" not in shuffling.heard(twin)
    ours, theirs = (sum(float(p.detach().double().sum()) for p in one.parameters()) for one in (model, twin))
    assert ours == theirs and sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in twin.parameters())
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert model(x).shape == twin(x).shape and not torch.equal(model(x), twin(x))


def test_a_network_without_shuffles_is_refused() -> None:
    with pytest.raises(Refused, match="cannot be taken out"):
        shuffling.unshuffled(build(ResNetConfig(8)))


def test_bytes_are_read_and_written_once() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 1, bias=False), shuffling.Shuffle(6, 2))
    assert shuffling.bytes_moved(model, 4) == {"shuffled": 4 * 2 * 6 * 16, "convolved": 4 * (3 * 16 + 6 * 16 + 18)}
    two = shuffling.bytes_moved(shuffling.network(ZooConfig("shufflenet_v2_x1_0")), 224)
    assert two["shuffled"] == 8 * (4 * 116 * 28**2 + 8 * 232 * 14**2 + 4 * 464 * 7**2)


@pytest.mark.parametrize("between", ["none", "shuffle"])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_flow_agrees_with_the_graph_and_the_jacobian(between: str, layers: int) -> None:
    stack = shuffling.stack(12, 3, layers, between)
    reached = shuffling.flow(stack, 12, 5).numpy()
    assert (reached == mixing.stack_reach(12, 3, layers, between)).all()
    assert (reached == mixing.reachable(stack, 12, 5)).all()


def test_what_mixes_groups_and_what_does_not() -> None:
    share = {
        name: float(shuffling.flow(shuffling.stack(12, 3, 3, **how), 12, 5).double().mean())  # type: ignore[arg-type]
        for name, how in {
            "none": {}, "residual": {"residual": True}, "shuffle": {"between": "shuffle"}, "dense": {"last": "dense"},
            "classifier": {"last": "classifier"},
        }.items()
    }  # fmt: skip
    assert share == {"none": 1 / 3, "residual": 1 / 3, "shuffle": 1.0, "dense": 1.0, "classifier": 1.0}


def test_the_definition_is_the_libraries() -> None:
    assert shuffling.definition(5) == {
        "unlike_torch": 0, "unlike_torchvision": 0, "no_permutation": 0, "not_restored": 0, "compared": 25,
    }  # fmt: skip


def test_resnext_is_grouped_and_its_branches_compute_the_same() -> None:
    with torch.device("meta"):
        model = shuffling.network(ZooConfig("resnext50_32x4d"))
    found = shuffling.branches(model, 4)
    assert (found["blocks"], found["groups"], found["pointwise_groups"]) == (16, [32], [1])
    assert 0 < found["difference"] < 1e-4
