"""Memory of DenseNets in two forms, and where the saved bytes are."""

from __future__ import annotations

import pytest
import torch

from cnnstudy.config import Refused
from cnnstudy.models.zoo import native, zoo
from cnnstudy.probes import allocator, concatenation, memory
from cnnstudy.probes.recompute import gradient_difference

GROWTH, INNER = 32, 128


def test_saved_parts_by_arithmetic() -> None:
    """Layer l of a block reads k0 + k (l - 1) channels: kept joined and activated, beside twice the 128 of the bottleneck, in float32."""
    table = concatenation.saved_parts(native("densenet121"), 64).set_index("block")
    for block, (layers, first, size) in enumerate(((6, 64, 16), (12, 128, 8), (24, 256, 4), (16, 512, 2)), 1):
        read = sum(first + GROWTH * i for i in range(layers)) * size**2 * 4
        assert table.loc[block, "layers"] == layers and table.loc[block, "joined"] == read
        statistics = 2 * 4 * sum(first + GROWTH * i for i in range(layers)) / 2  # mean and deviation of the batch of two
        assert table.loc[block, "activated"] == read + statistics
        assert table.loc[block, "inner"] == 2 * layers * INNER * size**2 * 4 + layers * 2 * 4 * INNER / 2
    whole = memory.saved(native("densenet121"), 64)["bytes_per_image"].sum()
    assert table[["joined", "activated", "inner", "rest"]].to_numpy().sum() == whole


def test_forms_compute_the_same_and_keep_less() -> None:
    torch.manual_seed(0)
    net = zoo(native("densenet121"))
    twin = concatenation.in_form(net, "recomputing", "cpu")
    assert gradient_difference(concatenation.in_form(net, "standard", "cpu"), twin, torch.rand(2, 3, 64, 64)) < 1e-4
    standard, less = (concatenation.needs(native("densenet121"), form, 64) for form in concatenation.FORMS)
    read = concatenation.saved_parts(native("densenet121"), 64)[["joined", "activated"]].to_numpy().sum()
    each = ((6, 64, 16), (12, 128, 8), (24, 256, 4), (16, 512, 2))  # layers, channels of the input, size: what is kept instead, once
    instead = sum((first + layers * GROWTH) * size**2 * 4 for layers, first, size in each)
    assert standard["kept"] - less["kept"] == pytest.approx(read - instead, rel=0.02)
    assert standard["fixed"] == pytest.approx(less["fixed"], rel=0.01)


@pytest.mark.parametrize("form", concatenation.FORMS)
def test_the_count_is_what_the_allocator_gives(form: str) -> None:
    net = concatenation.in_form(native("densenet121"), form)
    real = concatenation.in_form(native("densenet121"), form, "cpu")
    states = (
        58 * torch.get_rng_state().numel() if form == "recomputing" else 0
    )  # torch's checkpoint keeps the generator's, whatever the batch
    assert allocator.measured(real, 64, 2)["kept_bytes"] - states == pytest.approx(memory.training(net, 64, 2)["kept_bytes"], rel=0.002)


@pytest.mark.parametrize("name", ["densenet121", "resnet18"])
def test_one_tape_tells_what_two_do(name: str) -> None:
    """Against the slope and the intercept over two batch sizes."""
    found, both = concatenation.needs(native(name), resolution=64), memory.by_batch(native(name), 64)
    held = both["weights_bytes"] + both["buffers_bytes"] + both["gradients_bytes"] + both["optimizer_bytes"]["momentum"]
    assert (found["kept"], found["fixed"]) == (both["kept_per_image"], held + both["kept_fixed"])
    assert found["peak"] == pytest.approx(both["peak_activation_per_image"], rel=0.01)


def test_largest_batch_by_hand() -> None:
    found = {name: share * concatenation.GIB for name, share in (("fixed", 0.39), ("kept", 0.1), ("peak_fixed", 0.49), ("peak", 0.2))}
    assert concatenation.largest_batch(found, 2) == 14  # (1.8 - 0.39) / 0.1
    assert concatenation.largest_batch(found, 2, reserve=0.5, what="peak") == 2  # (1 - 0.49) / 0.2
    assert concatenation.largest_batch(found, 0.25) == 0


def test_refused() -> None:
    with pytest.raises(Refused, match="no dense layers"):
        concatenation.in_form(native("resnet18"), "recomputing")
    with pytest.raises(Refused, match="form"):
        concatenation.in_form(native("densenet121"), "fast")
    with pytest.raises(Refused, match="no dense layer"):
        concatenation.saved_parts(native("resnet18"), 64)
