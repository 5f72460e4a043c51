"""Dense networks: the published counts, what a layer reads, and twins of equal size that look back less far."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cnnstudy.config import Refused
from cnnstudy.models import DenseConfig, build
from cnnstudy.models.dense import DenseLayer


def params(cfg: DenseConfig) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in build(cfg).parameters())


@pytest.mark.parametrize(
    ("depth", "growth", "bc", "published"),
    [(40, 12, False, 1.0), (100, 12, False, 7.0), (100, 24, False, 27.2)]
    + [(100, 12, True, 0.8), (250, 24, True, 15.3), (190, 40, True, 25.6)],
)
def test_published_counts(depth: int, growth: int, bc: bool, published: float) -> None:
    """Huang et al. 2017, table 2, in millions: with bottlenecks and compression one half, or with neither."""
    cfg = DenseConfig(depth, growth, bottleneck=bc, compression=0.5 if bc else 1.0)
    assert params(cfg) / 1e6 == pytest.approx(published, abs=0.051)


def test_counts_by_hand() -> None:
    """BC-100-12 is known to have 769,162 parameters; the smaller ones are sums over their layers, done by hand."""
    assert params(DenseConfig(100)) == 769_162
    assert params(DenseConfig(40)) == 648 + 47_880 + 4_800 + 55_080 + 7_440 + 58_680 + 264 + 1_330 == 176_122
    assert params(DenseConfig(22)) == 648 + 21_240 + 1_920 + 22_140 + 2_310 + 22_590 + 138 + 700 == 71_686


def test_depth_counts_weighted_layers() -> None:
    for cfg in (DenseConfig(40), DenseConfig(22, bottleneck=False), DenseConfig(40, window=2), DenseConfig(100, 2)):
        with torch.device("meta"):
            net = build(cfg)
        assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in net.modules()) == cfg.depth


@pytest.mark.parametrize("window", [0, 1, 2, 3])
def test_a_layer_reads_the_last_outputs_of_its_block(window: int) -> None:
    """Each layer's input is put together by hand from a list of outputs, the block's input first."""
    torch.manual_seed(0)
    net = build(DenseConfig(34, growth=3, window=window)).double().eval()  # five layers a block
    x = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    h = net.stem(net.normalize(x))
    for stage in net.stages:
        outputs = [h]
        for name, part in stage.named_children():
            seen = torch.cat(outputs[-window:] if window else outputs, 1)
            if not isinstance(part, DenseLayer):
                continue
            assert part.c_in == seen.shape[1], name
            b = part.branch
            made = b.conv2(b.norm2(b.conv1(b.norm1(seen).relu())).relu())
            assert made.shape[1] == 3
            outputs.append(made)
        h = torch.cat(outputs[-window:] if window else outputs, 1)
        if hasattr(stage, "transition"):
            h = nn.functional.avg_pool2d(stage.transition.conv(stage.transition.norm(h).relu()), 2)
    torch.testing.assert_close(net.final(h).mean((2, 3)), net.features(x))


def test_input_grows_by_the_growth_rate() -> None:
    assert [layer.c_in for layer in build(DenseConfig(40, 12)).layers()][:6] == [24, 36, 48, 60, 72, 84]
    assert [layer.c_in for layer in build(DenseConfig(22, 12, window=1, compression=1.0)).layers()] == [24, 12, 12, 12, 12, 12, 12, 12, 12]


TWINS = [
    (DenseConfig(40), DenseConfig(40, 16, compression=1.0, window=1, inner=59)),
    (DenseConfig(40), DenseConfig(40, 15, compression=1.0, window=2, inner=56)),
    (DenseConfig(100), DenseConfig(100, 20, compression=1.0, window=1, inner=79)),
]


@pytest.mark.parametrize(("dense", "twin"), TWINS)
def test_twins_have_equal_parameters_and_no_other_width_fits_better(dense: DenseConfig, twin: DenseConfig) -> None:
    """Within 1 %; among all widths inside the bottlenecks, the nearest."""
    import dataclasses

    off = {i: abs(params(dataclasses.replace(twin, inner=twin.inner + i)) - params(dense)) for i in range(-3, 4)}
    assert min(off, key=lambda i: off[i]) == 0
    assert off[0] < 0.01 * params(dense)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"depth": 41}, "depth 41 .*6n \\+ 4 .22, 40, 100"),
        ({"depth": 41, "bottleneck": False}, "depth 41 .*3n \\+ 4"),
        ({"depth": 4}, "depth 4 "),
        ({"growth": 0}, "growth 0"),
        ({"window": -1}, "window -1"),
        ({"compression": 0.0}, "compression 0.0"),
        ({"compression": 1.5}, "compression 1.5"),
        ({"inner": 8, "bottleneck": False, "depth": 40}, "inner 8"),
    ],
)
def test_refuses_in_one_line(fields: dict[str, float], message: str) -> None:
    with pytest.raises(Refused, match=message) as caught:
        DenseConfig(**fields)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
