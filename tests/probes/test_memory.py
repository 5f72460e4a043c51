"""The memory ledger against counts by hand, against the allocator, and against a second way of counting."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from cnnstudy.config import Refused
from cnnstudy.models import ImageNetConfig, MobileNetV2Config, ResNetConfig, VggConfig, build
from cnnstudy.models.zoo import ZooConfig
from cnnstudy.probes import allocator, memory
from cnnstudy.probes.tape import training_tape

MAP = 4 * 64  # bytes of one channel of 8 x 8 in float32


def three_layers(inplace: bool = False) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace), nn.Conv2d(4, 2, 1))


def test_three_layers_in_training_by_hand() -> None:
    """Saved: the images (for the first weight's gradient) and the ReLU's output, which the ReLU and the second layer share."""
    found = memory.training(three_layers(), 8, batch=2)
    assert found["saved_bytes"] == 2 * MAP * (3 + 4)
    assert found["saved_input_bytes"] == 2 * MAP * 3
    # forward: images and first map; that and the ReLU's; the images, the ReLU's map and the output; the loss, a number
    assert found["timeline"][:4].tolist() == [2 * MAP * n for n in (3 + 4, 3 + 4 + 4, 3 + 4 + 2)] + [2 * MAP * (3 + 4 + 2) + 4]
    # backward through the ReLU: images, its output, the gradients behind it and before it; the loss and its gradient, 1
    assert found["peak_activation_bytes"] == 2 * MAP * (3 + 4 + 4 + 4) + 8
    assert (found["peak_phase"], found["peak_at"], found["peak_op"]) == ("backward", "1", "threshold_backward")
    assert found["gradient_timeline"][-1] == found["gradients_bytes"] == 4 * (3 * 4 * 9 + 4 + 4 * 2 + 2)
    assert found["forward_operations"] == 4


def test_three_layers_in_inference_by_hand() -> None:
    eager = memory.inference(three_layers(), 8)
    assert eager["timeline"].tolist() == [MAP * n for n in (3 + 4, 3 + 4 + 4, 3 + 4 + 2)]
    assert (eager["peak_at"], eager["peak_op"], eager["modules"]) == ("1", "relu", ["0", "1", "2"])
    assert memory.inference(three_layers(inplace=True), 8)["peak_bytes"] == MAP * (3 + 4 + 2)
    engine = memory.inference(three_layers(), 8, mode="folded")
    assert engine["timeline"].tolist() == [MAP * n for n in (3 + 4, 4, 4 + 2)]  # the ReLU works in place, the images are gone
    assert engine["peak_shapes"] == ["4x8x8", "3x8x8"] and engine["peak_channels"] == 4


def test_folding_takes_only_what_may_be_folded() -> None:
    norm = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 1, 1))
    # conv, norm and ReLU share one map; the second norm follows a ReLU and can't be folded: two maps
    assert memory.inference(norm, 8, mode="folded")["timeline"].tolist() == [MAP * n for n in (3 + 4, 4, 4 + 4, 4 + 1)]

    class Reused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.conv(x)
            return torch.relu(x) + x  # the ReLU must not write over x

    assert memory.inference(Reused(), 8, mode="folded")["timeline"].tolist() == [MAP * n for n in (3 + 4, 4 + 4, 4 + 4 + 4)]


def test_an_engine_makes_no_indices() -> None:
    pool = nn.Sequential(nn.Conv2d(3, 4, 1), nn.MaxPool2d(2))
    assert memory.inference(pool, 8)["peak_bytes"] == MAP * (3 + 4 + 1 + 2)  # indices take 8 bytes each
    assert memory.inference(pool, 8, mode="folded")["peak_bytes"] == MAP * (3 + 4)


def test_maps_of_vgg16() -> None:
    """13.55 million convolution outputs: 2 x 64 x 224^2 + 2 x 128 x 112^2 + 3 x 256 x 56^2 + 3 x 512 x (28^2 + 14^2)."""
    rows = memory.saved(ImageNetConfig("vgg16"), 224)
    maps = rows[(rows.kind == "activation") & rows.module.str.startswith("features")]
    relus = maps[maps.op == "relu"]  # every convolution's output, after the ReLU in place
    # timm's ReLU works in place, in the convolution's storage, which the convolution made
    written = maps[maps.op == "convolution"] if relus.empty else relus
    assert written.bytes_per_image.sum() / 4 == 13_547_520
    pooled = maps[maps.op.str.startswith("max_pool")]
    assert pooled.bytes_per_image.sum() / 4 == 64 * 112**2 + 128 * 56**2 + 256 * 28**2 + 512 * 14**2 + 512 * 7**2
    index = rows[rows.kind == "index"]
    assert index.bytes_per_image.sum() == 2 * pooled.bytes_per_image.sum()  # 8 bytes for 4


def naive_saved(model: nn.Module, x: torch.Tensor) -> int:
    """The second way: a real run on the CPU, storages told apart by address, all kept alive."""
    held: dict[int, torch.Tensor] = {}
    parameters = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in parameters:
            held[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = nn.functional.cross_entropy(model(x), torch.zeros(len(x), dtype=torch.long))
    held.pop(0, None)
    total = sum(t.untyped_storage().nbytes() for t in held.values())
    assert loss.requires_grad
    return total


@pytest.mark.parametrize("cfg", [ResNetConfig(depth=8), MobileNetV2Config(), VggConfig()])
def test_saved_bytes_of_a_real_run(cfg: Any) -> None:
    model = build(cfg).train()
    labels = 8 * 2  # the loss saves its labels, which the ledger leaves out: they are data, not activations
    found = memory.training(model, 32, batch=2)["saved_bytes"]
    assert naive_saved(copy.deepcopy(model), torch.zeros(2, 3, 32, 32)) == found + labels
    assert memory.training(model, 32, batch=2, device="cpu")["saved_bytes"] == found


@pytest.mark.parametrize("cfg", [ResNetConfig(depth=8), ZooConfig("resnet18", 64), ZooConfig("mobilenetv2_100", 64)])
def test_against_the_allocator(cfg: Any) -> None:
    """After the forward pass the allocator has given out exactly what is counted; at the peak also workspaces of kernels."""
    resolution = getattr(cfg, "resolution", 32)
    counted, real = memory.training(cfg, resolution, batch=4), allocator.measured(cfg, resolution, batch=4)
    assert real["kept_bytes"] == counted["kept_bytes"]
    assert counted["peak_bytes"] <= real["peak_bytes"] <= 1.25 * counted["peak_bytes"]


def test_inference_against_the_allocator() -> None:
    """Without padding or channels that need another layout no kernel takes a workspace: then the peaks agree to the byte."""
    model = nn.Sequential(nn.MaxPool2d(2), nn.BatchNorm2d(3), nn.Hardswish(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 10))
    counted, real = memory.inference(model, 64, batch=4), allocator.measured(model, 64, batch=4, training=False)
    assert real["peak_bytes"] == counted["peak_bytes"]
    resnet = ZooConfig("resnet18", 64)
    counted, real = memory.inference(resnet, 64), allocator.measured(resnet, 64, batch=1, training=False)
    assert counted["peak_bytes"] <= real["peak_bytes"]


def test_kept_is_what_was_saved() -> None:
    """Two definitions agree where no checkpointing interferes: seen by autograd's hooks, and alive after the forward pass."""
    for cfg in (ResNetConfig(depth=8), ZooConfig("mobilenetv2_100", 64)):
        resolution = getattr(cfg, "resolution", 32)
        found = memory.training(cfg, resolution, batch=2)
        images = 2 * 4 * 3 * resolution**2
        # our small networks normalise first: the images themselves are held by the caller only
        assert found["kept_bytes"] == found["saved_bytes"] + (images - found["saved_input_bytes"]) + 4


def test_checkpointing_shows_in_what_is_kept() -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 3, 1), nn.ReLU())
            self.use = True

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = checkpoint(self.one, x, use_reentrant=False, preserve_rng_state=False) if self.use else self.one(x)
            return y

    model = Checkpointed()
    assert memory.training(model, 8, 1)["kept_bytes"] == MAP * 3 + 4  # the images and the loss
    model.use = False
    assert memory.training(model, 8, 1)["kept_bytes"] == MAP * (3 + 8 + 3) + 4


def test_batch_norm_and_inplace_share_storage() -> None:
    """A norm keeps its input; a ReLU in place writes over the norm's output: one map a layer in VGG, two with batch norm."""
    plain = [nn.Conv2d(3, 4, 1), nn.ReLU(True)]
    normed = [nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(True)]
    assert memory.training(nn.Sequential(*plain), 8, 2)["saved_bytes"] == 2 * MAP * (3 + 4)
    assert memory.training(nn.Sequential(*normed), 8, 2)["saved_bytes"] == 2 * MAP * (3 + 4 + 4) + 2 * 4 * 4  # mean and deviation


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1),
    "momentum": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_state_is_what_torch_allocates(name: str) -> None:
    model = build(ResNetConfig(depth=8))
    optimizer = OPTIMIZERS[name](model.parameters())
    model(torch.rand(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    held = sum(v.numel() * v.element_size() for state in optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor))
    assert memory.fixed(model)["optimizer_bytes"][name] == held


def test_weights_and_gradients() -> None:
    found = memory.fixed(ImageNetConfig("vgg16"))
    assert (found["params"], found["weights_bytes"], found["gradients_bytes"]) == (138_357_544, 4 * 138_357_544, 4 * 138_357_544)
    model = build(ResNetConfig(depth=8))
    model.head.weight.requires_grad_(False)
    assert memory.fixed(model)["weights_bytes"] - memory.fixed(model)["gradients_bytes"] == 4 * 640


def test_by_batch_is_exact() -> None:
    cfg = ZooConfig("mobilenetv2_100", 64)
    known, seven = memory.by_batch(cfg, 64), memory.training(cfg, 64, 7)
    for name in ("saved", "kept"):
        assert known[f"{name}_fixed"] + 7 * known[f"{name}_per_image"] == seven[f"{name}_bytes"]
    parts = memory.breakdown(cfg, 64, 7, "adam")
    assert parts["activations"] == seven["saved_bytes"]
    assert parts["total"] == 4 * parts["weights"] + 4 * 158 + seven["saved_bytes"]  # weights, gradients, two of Adam, its step counts
    assert 0 < parts["share"] < 1
    assert memory.breakdown(cfg, 64, 1, training=False)["gradients"] == 0


def test_overtakes() -> None:
    vgg, small = (memory.by_batch(ImageNetConfig(n), 64) for n in ("vgg11_bn", "resnet18"))
    batch = memory.overtakes(vgg, small, most=64)
    assert batch is None  # VGG-11 with batch norm keeps more per image, too
    light = {**small, "saved_per_image": vgg["saved_per_image"] + 1e8}
    heavy = 3 * (vgg["weights_bytes"] - small["weights_bytes"]) + vgg["saved_fixed"] - small["saved_fixed"]
    assert memory.overtakes(vgg, light) == int(heavy // 1e8) + 1


def test_spikes() -> None:
    climb = np.concatenate([np.arange(100), np.arange(100)[::-1]])
    assert memory.spikes(climb) == {"spikes": 0, "peak_is_spike": False}
    climb[40] = 150
    assert memory.spikes(climb) == {"spikes": 1, "peak_is_spike": True}
    with pytest.raises(Refused, match="reach >= 1"):
        memory.spikes(climb, reach=0)


def test_training_keeps_and_inference_releases() -> None:
    """Deeper networks need more in training, and no more in inference."""
    kept = [memory.training(ResNetConfig(depth=d), 32, 2)["saved_bytes"] for d in (20, 56)]
    peak = [memory.inference(ResNetConfig(depth=d), 32)["peak_bytes"] for d in (20, 56)]
    assert kept[1] > 2 * kept[0] and peak[0] == peak[1]


def test_every_storage_has_its_place() -> None:
    tape = training_tape(ResNetConfig(depth=8), 32, 2)
    alive = tape.timeline()
    assert alive[-1] == sum(s.bytes for s in tape.storages if s.died in (None, len(alive) - 1))
    assert {s.module.split(".")[0] for s in tape.storages if s.saved} >= {"normalize", "stem", "stages"}
    assert all(s.born <= (s.died if s.died is not None else len(alive)) for s in tape.storages)
    at = int(alive.argmax())
    assert sum(s.bytes for s in tape.alive(at)) == alive[at]


def test_model_is_left_as_found() -> None:
    model = build(ResNetConfig(depth=8))
    model.stem.eval()
    before = {k: (v.clone(), id(v), v._version) for k, v in model.state_dict(keep_vars=True).items()}
    modes = [m.training for m in model.modules()]
    memory.training(model, 32)
    allocator.measured(model, 32)
    memory.inference(model, 32)
    assert modes == [m.training for m in model.modules()]
    assert all(p.grad is None for p in model.parameters())
    for name, value in model.state_dict(keep_vars=True).items():
        assert torch.equal(value, before[name][0]) and (id(value), value._version) == before[name][1:]


def test_refuses_what_it_cannot_do() -> None:
    with pytest.raises(Refused, match="must be at least 1"):
        memory.training(ResNetConfig(), 0)
    with pytest.raises(Refused, match="can't take images of shape"):
        memory.inference(VggConfig(), 4)
    with pytest.raises(Refused, match="unknown mode 'fold'"):
        memory.inference(ResNetConfig(), 32, mode="fold")
    with pytest.raises(Refused, match="unknown optimizer"):
        memory.breakdown(ResNetConfig(depth=8), 32, 1, "adagrad")


def test_takes_milliseconds() -> None:
    memory.training(ResNetConfig(depth=8), 32)
    start = time.process_time()
    memory.training(ResNetConfig(depth=20), 32)
    assert time.process_time() - start < 2


def test_expanded_width() -> None:
    """One inverted residual by hand: 4 -> 8 -> 4 channels; the images have 3."""
    model = build(MobileNetV2Config())
    found = memory.expanded(model, 32)
    rows = memory.saved(model, 32)
    assert 0.5 < found["saved_share"] < 1 and found["saved_share"] + found["narrow_share"] < 1
    first = rows[rows["module"].str.startswith("stages.1.0.") & (rows["channels"] == 64)]  # 16 -> 64 -> 24 at stride 2
    # a norm keeps the convolution's output; the activation and its use as the next input are one tensor, if it works in place one storage
    big, small = 2 * 4 * 64 * 32**2, 2 * 4 * 64 * 16**2
    maps = first[first["kind"] == "activation"]
    assert set(maps["bytes"]) == {big, small}
    with pytest.raises(Refused, match="inverted residuals"):
        memory.expanded(ResNetConfig(depth=8), 32)


def test_by_block() -> None:
    """A basic block of 16 channels on 32 x 32, folded: input and first map, then those and the second; the addition needs a third."""
    found = memory.by_block(ResNetConfig(depth=8), 32)
    assert list(found) == ["normalize", "stem", "stages.0.0", "stages.1.0", "stages.2.0", "", "head"]
    assert found["stages.0.0"] == 3 * 4 * 16 * 32**2
    assert max(found.values()) == memory.inference(ResNetConfig(depth=8), 32, mode="folded")["peak_bytes"]
    assert list(memory.by_block(ZooConfig("mobilenetv2_100", 64), 64))[1:3] == ["bn1", "blocks.0.0"]
